"""Published mean IoU of the official weights, and how far a run is from it."""

TO_175 = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
# By (dataset, split, output stride, scales, flip), in percent. One scale at
# stride 8: the converted models of ChainerCV's example. The others: the
# official model zoo, which on ADE20K also resizes the images.
PUBLISHED = {
    ('voc', 'val', 8, (1.0,), False): 82.36,
    ('voc', 'val', 16, (1.0,), False): 82.20,
    ('voc', 'val', 8, TO_175, True): 83.58,
    ('cityscapes', 'val', 8, (1.0,), False): 79.14,
    ('cityscapes', 'val', 16, (1.0,), False): 78.79,
    ('cityscapes', 'val', 8, (0.75, 1.0, 1.25), True): 80.42,
    ('ade20k', 'val', 8, (1.0,), False): 42.52,
    ('ade20k', 'val', 8, TO_175, True): 45.65,
}
TOLERANCE = 0.1  # percent


def verdict(miou, settings):
    """Return one line: the published figure, and how far mIoU in [0, 1] is."""
    if miou is None:
        return 'no pixel is labelled: there is no score'
    published = PUBLISHED.get((
        settings['dataset'], settings['split'], settings['output_stride'],
        tuple(settings['scales']), settings['flip']))
    if published is None or settings.get('resize_range'):
        return 'no figure was published for these settings'
    if settings['images'] != settings['images_of_split']:
        return (f'published {published:.2f} %, for all '
                f'{settings["images_of_split"]} images of the split: not '
                'comparable')
    if settings.get('precision', 'float32') != 'float32':
        return (f'published {published:.2f} % in float32, difference in '
                f'{settings["precision"]} {100 * miou - published:+.2f}')
    difference = 100 * miou - published
    within = abs(difference) <= TOLERANCE
    return (f'published {published:.2f} %, difference {difference:+.2f}: '
            f'{"within" if within else "NOT within"} {TOLERANCE}')
