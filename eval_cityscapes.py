"""Measure the mean IoU of DeepLabV3+ on Cityscapes.

    python eval_cityscapes.py --data-dir DIR

DIR holds leftImg8bit and gtFine, as they come out of the archive.
The report goes to report_cityscapes; a run that was stopped is taken up
again by the same command.
"""
from command_line.evaluation import main

if __name__ == '__main__':
    main('cityscapes', __doc__)
