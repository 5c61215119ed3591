"""Alarms: known ways in which training goes wrong, each said once, with figures and a remedy.

The recipe shows a ``Watch`` each micro-batch (``saw``) and each optimizer step (``after``). Nothing is read from the device
before a window is over: at least ``logging_steps`` steps and ``WINDOW_QUESTIONS`` questions of a process.

========================  ===========================================================  ==================================
alarm                     raised when                                                  remedy
========================  ===========================================================  ==================================
retrieval-collapse (!)    different passages among those retrieved fall to a quarter   smaller --retriever-learning-rate,
                          of their share in the first window                           --infonce-weight
query-collapse (!)        question vectors differ a tenth as much as in the first      the same
                          window, relative to their length
zero-gradient (!)         the gradient of an encoder in training is nothing, 3 steps   --n-docs 2 or more, or freeze it
exploding-loss (!)        the loss is 3 times its running median, 3 steps in a row     smaller --learning-rate, more
                                                                                       --warmup-steps
rising-loss (!)           the loss rose through the last 80 steps, by a half or more   smaller --learning-rate
untaught-retriever        posterior and prior are the same, 3 windows: the generator   --infonce-weight, a lower
                          does not care which passage it reads                         --score-temperature
contradicted-retriever    the posterior picks what the prior excludes, 3 windows       a higher --score-temperature
cut-questions             questions reach --max-question-tokens                        raise it
cut-generator-questions   questions alone are longer than --max-input-tokens           raise it
empty-targets             answers without a token to predict                           remove them
missing-passages          fewer passages found than asked for (ids of -1)              fewer --n-docs, --search-index flat
========================  ===========================================================  ==================================

(!) marks what ruins a run: with ``--on-alarm stop`` it ends it. A loss that is not finite is the loop's to refuse.

On several processes each watches its own share; at the end of a window all learn what any of them found, so that they stop
together, and the first one writes it down.

known.py   the alarms, their thresholds and remedies
window.py  what a process saw, kept on its device until it is read
loss.py    looks at losses, whatever is trained, and tells
watch.py   looks at retrieval and data as well
"""

from ragtrain.train.alarms.known import REMEDIES, Alarm
from ragtrain.train.alarms.loss import LossWatch
from ragtrain.train.alarms.watch import Watch

__all__ = ["REMEDIES", "Alarm", "LossWatch", "Watch"]
