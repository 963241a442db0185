"""Measure the mean IoU of DeepLabV3+ on ADE20K.

    python eval_ade20k.py --data-dir DIR

DIR holds ADEChallengeData2016, as unpacked from the archive.
The same command resumes a stopped run; the report is in report_ade20k.
"""
from command_line.evaluation_options import main

if __name__ == '__main__':
    main('ade20k', __doc__)
