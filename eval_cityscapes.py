"""Measure the mean IoU of DeepLabV3+ on Cityscapes.

    python eval_cityscapes.py --data-dir DIR

DIR holds leftImg8bit and gtFine, as unpacked from the archives.
The same command resumes a stopped run; the report is in report_cityscapes.
"""
from command_line.evaluation_options import main

if __name__ == '__main__':
    main('cityscapes', __doc__)
