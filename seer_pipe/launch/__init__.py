"""Runs as jobs: on Slurm, or on this machine, through submitit.

cluster.py   what a job asks for
submit.py    a config becomes a job: launch, resume, sweep
cancel.py    a run is stopped for good
job.py       what each task does: finds its place, says who is there, trains
call.py      a verb such as eval as a job, whose output comes back
after.py     what happens once the tasks are gone: done, again, or failed
keeper.py    does on one machine what Slurm does on a cluster
record.py    the files in the run's folder by which all of these know of each other
status.py    what a person wants to know

What is asked on a login node, and what waits for a job, imports no torch.
"""
