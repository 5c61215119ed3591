"""Reading every form in which people have questions and passages, recognised without being asked.

``read_questions`` returns all questions of a file; ``iter_passages`` streams passages. Both take gzip, know folders,
locate every bad record (file, line, field, what was expected) and refuse pickles. The forms are listed in ``shapes``
(questions) and ``passages``; ``rows`` knows the containers around them.
"""

from __future__ import annotations

from ragtrain.data.formats.passages import PassageReader, iter_passages
from ragtrain.data.formats.questions import QuestionFile, questions_from_rows, read_questions

__all__ = ["PassageReader", "QuestionFile", "iter_passages", "questions_from_rows", "read_questions"]
