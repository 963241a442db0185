"""A dataset, segmented and scored: images, confusion matrix, report."""
