"""Every command's configuration, and how files, arguments and flags become one."""
