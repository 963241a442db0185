"""Measure the mean IoU of DeepLabV3+ on VOC2012.

    python eval_voc.py --data-dir DIR

DIR holds VOCdevkit/VOC2012, as unpacked from the archive.
The same command resumes a stopped run; the report is in report_voc.
"""
from command_line.evaluation_options import main

if __name__ == '__main__':
    main('voc', __doc__)
