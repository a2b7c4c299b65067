"""`magsd doctor`: what works on this machine, found out by running something real.

Each check says what it saw, and the next step when that is not well. Runs no
engine by itself: the way to run a script in a sandbox is handed in.
"""

from magsd.doctor.check import Check, Verdict, report
from magsd.doctor.diagnosis import clean, diagnose, watch_leftovers
from magsd.doctor.network import Ran, RunScript

__all__ = ["Check", "Ran", "RunScript", "Verdict", "clean", "diagnose", "report", "watch_leftovers"]
