"""What the module supervisor_roll does. A file imports only from those named above it.

excerpt      the end of what a program said, safe to show
options      what was asked for
supervisord  processes as supervisord sees them, and the few things asked of it over its socket
health       health commands, a few at a time
marks        who has been asked to end and has not yet, kept beyond the run
unit         one process on its way to a goal: what it needs next
roll         looks and acts until every unit has reached its end
plan         what is to be done, made of one look: groups whose configuration changes, processes chosen
report       what there is to say at the end
forecast     what a run would do: check mode
convergence  a run: look, plan, update, roll, conclude

`unit` and `plan` read no clock, no socket and no process table: they are functions of what was seen.

All of it runs on the hosts: Python 3.9 and its standard library, no more.
"""
