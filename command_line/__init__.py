"""What the scripts share: their options, and the model that these ask for.

Each script imports it before all else. A standard stream that is closed (>&-)
leads nowhere from then on: no library's file may take its number.
"""
import os

while (_number := os.open(os.devnull, os.O_RDWR)) <= 2:
    pass
os.close(_number)
