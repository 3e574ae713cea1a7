"""Runs the scripts of a copy of the repository, each in a fork of this process, which has loaded them.

A line of JSON names the script with its flags, and the files that get its standard output and error; the answer is the
line of its exit code.
"""

import json
import os
import sys

import preloaded  # noqa: F401

import bench
import evaluate
import reproduce
import train
from experiment.errors import run_script

scripts = {"bench.py": bench, "evaluate.py": evaluate, "reproduce.py": reproduce, "train.py": train}
for line in sys.stdin:
    words, *files = json.loads(line)
    child = os.fork()
    if not child:
        sys.argv = words
        for stream, file in enumerate([os.devnull, *files]):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC), stream)
        try:
            run_script(scripts[words[0]].main)
        except SystemExit as end:  # what is left to do takes Python a second
            sys.stdout.flush()
            os._exit(end.code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
