"""What a compressor is worth: the same questions answered from memory, from text, from nothing, all by one generator.

subject.py   a network with everything that asks it; a run of ``train compress`` as ``ragtrain eval`` finds it
arms.py      what the generator is given in each arm, and with which adapters
budgets.py   text that spends what the memory spends: first tokens, best sentences
asked.py     arms → prompts; cuts.py: what never reaches the compressor
swap.py      other adapters in the generator for a while
measure.py   prompts → answers → scores
verdict.py   whether memory is worth more than the text it costs as much as; kinds.py: figures for kinds of questions
files.py     what is written of it
command.py   ``ragtrain eval`` of a run; tested.py: the questions that it is asked
speed.py, cost.py, plots.py   what it costs (counted by models/flops.py), and pictures of all
"""
