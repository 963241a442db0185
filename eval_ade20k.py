"""Measure the mean IoU of DeepLabV3+ on ADE20K.

    python eval_ade20k.py --data-dir DIR

DIR holds ADEChallengeData2016, as it comes out of the archive.
The report goes to report_ade20k; a run that was stopped is taken up
again by the same command.
"""
from command_line.evaluation import main

if __name__ == '__main__':
    main('ade20k', __doc__)
