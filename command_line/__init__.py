"""What the scripts share: their options, and the model that these ask for.

Each script imports it before all else. A standard stream that is closed (>&-)
leads nowhere from then on: no library's file may take its number. Ctrl-C ends
a script that still imports without a word.
"""
import os
import signal
import sys

if sys.platform == 'win32':
    sys.exit('error: this runs on Linux and macOS: on Windows use Linux in '
             'WSL (wsl --install)')
while (_number := os.open(os.devnull, os.O_RDWR)) <= 2:
    pass
os.close(_number)
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
