"""Measure the mean IoU of DeepLabV3+ on Cityscapes.

    python eval_cityscapes.py --data-dir DIR

DIR holds leftImg8bit and gtFine, as unpacked from the archives.
The report goes to report_cityscapes. The same command resumes a run that was
stopped.
"""
from command_line.evaluation_options import main

if __name__ == '__main__':
    main('cityscapes', __doc__)
