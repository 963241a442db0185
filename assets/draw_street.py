"""Draw the street scene that the demo segments, as a camera would see it.

    python assets/draw_street.py assets/street.png

Each shape is drawn twice: its Cityscapes class into a label map, and its
colours into a photograph, with light, shadow, texture and haze. The stand-in
weights tell classes by the nearest palette colour alone; so each pixel is then
moved towards its class's palette colour, just far enough to be nearest to it.
"""
import math
import pathlib
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from models.classes import CITYSCAPES_NAMES, label_colors

WIDTH, HEIGHT = 1024, 512  # pixels
HORIZON = 262  # row in pixels
FINE = 2  # the photograph is drawn in pixels of half the size, then shrunk
GRAIN = 1.5  # noise of the camera: grey levels, standard deviation
MARGIN = 5  # grey levels by which the right palette colour is nearer
HAZE = np.array([150, 168, 190])
COLORS = {  # of each class in daylight, RGB
    'road': (112, 98, 112), 'sidewalk': (226, 112, 204),
    'building': (104, 92, 82), 'wall': (112, 106, 142),
    'fence': (196, 160, 146), 'pole': (158, 158, 156),
    'traffic light': (236, 168, 40), 'traffic sign': (232, 206, 40),
    'vegetation': (98, 132, 44), 'terrain': (142, 224, 120),
    'sky': (96, 144, 190), 'person': (206, 60, 84), 'rider': (240, 50, 24),
    'car': (28, 32, 138), 'truck': (34, 32, 84), 'bus': (16, 66, 112),
    'train': (22, 92, 106), 'motorcycle': (30, 36, 216),
    'bicycle': (124, 30, 44)}


def shaded(color, light):
    """Return an RGB colour, made darker or lighter by a factor."""
    return tuple(int(min(255, value * light)) for value in color)


class Scene:
    """A label map and a photograph, drawn back to front.

    Positions are (x, y) in pixels of the label map. `light` is a factor of the
    colour; `mark=False` draws a detail, which leaves the label map as it is.
    """

    def __init__(self):
        self.label = Image.new('L', (WIDTH, HEIGHT))
        self.photo = Image.new('RGB', (FINE * WIDTH, FINE * HEIGHT))
        self.layers = [(ImageDraw.Draw(self.label), 1),
                       (ImageDraw.Draw(self.photo), FINE)]
        self.rng = np.random.default_rng(0)

    def draw(self, shape, points, name, light=1., mark=True, color=None,
             width=0, **options):
        color = shaded(color or COLORS[name], light)
        for canvas, scale in self.layers[not mark:]:
            fill = CITYSCAPES_NAMES.index(name) if scale == 1 else color
            scaled = [(x * scale, y * scale) for x, y in points]
            more = {key: value * scale for key, value in options.items()}
            if width:
                more['width'] = max(1, round(width * scale))
            if shape == 'line':
                canvas.line(scaled, fill=fill, joint='curve', **more)
            elif width:
                canvas.ellipse(scaled, outline=fill, **more)
            else:
                getattr(canvas, shape)(scaled, fill=fill, **more)

    def polygon(self, name, *points, **options):
        self.draw('polygon', points, name, **options)

    def box(self, name, left, top, right, bottom, radius=0, **options):
        self.draw('rounded_rectangle', [(left, top), (right, bottom)], name,
                  radius=radius, **options)

    def disc(self, name, x, y, rx, ry=None, **options):
        ry = ry or rx
        self.draw('ellipse', [(x - rx, y - ry), (x + rx, y + ry)], name,
                  **options)

    def line(self, name, width, *points, **options):
        self.draw('line', points, name, width=width, **options)

    def shadow(self, *points, depth=0.55):
        """Darken a polygon of the photograph, with soft edges."""
        self.blend((34, 26, 48), depth, 5, [points], 'polygon')

    def blend(self, color, share, blur, shapes, kind='ellipse'):
        """Mix a colour into shapes of the photograph, with soft edges."""
        mask = Image.new('L', self.photo.size)
        for points in shapes:
            getattr(ImageDraw.Draw(mask), kind)(
                [(x * FINE, y * FINE) for x, y in points], round(255 * share))
        paint = Image.new('RGB', self.photo.size, color)
        self.photo.paste(paint, mask=mask.filter(
            ImageFilter.GaussianBlur(blur)))


def draw_scene():
    """Return the scene: its label map and its photograph."""
    scene = Scene()
    draw_sky(scene)
    draw_ground(scene)
    draw_buildings(scene)
    draw_trees(scene)
    draw_street_furniture(scene)
    draw_vehicles(scene)
    draw_people(scene)
    return scene


def draw_sky(scene):
    scene.box('sky', 0, 0, WIDTH, HEIGHT)
    for y in range(HORIZON):
        scene.line('sky', 1, (0, y), (WIDTH, y), light=0.8 + 0.32 * y / HORIZON)
    for x, y, size in [(210, 40, 40), (480, 92, 34), (640, 36, 46),
                       (860, 70, 30)]:
        points = scene.rng.normal(0, (1.7, 0.3), (70, 2)) * size + (x, y)
        scene.blend((146, 176, 212), 0.8, 9, [
            [(px - size * 0.4, py - size * 0.16),
             (px + size * 0.4, py + size * 0.16)] for px, py in points])


def draw_ground(scene):
    scene.box('terrain', 0, HORIZON, WIDTH, HEIGHT)
    for _ in range(2500):  # blades of grass
        x, y = scene.rng.uniform((0, HORIZON), (WIDTH, HEIGHT))
        scene.line('terrain', 1, (x, y), (x + 2, y - 4), mark=False,
                   light=scene.rng.uniform(0.8, 1.15))
    scene.polygon('sidewalk', (400, HORIZON), (624, HORIZON), (WIDTH, 430),
                  (WIDTH, HEIGHT), (0, HEIGHT), (0, 430))
    for i in range(1, 40):  # joints of the paving, nearer and nearer
        y = HORIZON + 250 / i
        scene.line('sidewalk', 1, (0, y), (WIDTH, y), mark=False, light=0.86)
    for x in range(-1600, 2700, 90):
        scene.line('sidewalk', 1, (512, HORIZON), (x, HEIGHT), mark=False,
                   light=0.88)
    scene.polygon('road', (476, HORIZON), (548, HORIZON), (930, HEIGHT),
                  (94, HEIGHT))
    for left, right in [(476, 94), (548, 930)]:  # kerb and gutter
        scene.line('road', 3, (left, HORIZON), (right, HEIGHT), mark=False,
                   light=0.6)
    for near, far in [(1.0, 0.8), (0.62, 0.5), (0.4, 0.33), (0.27, 0.23),
                      (0.19, 0.165), (0.13, 0.115)]:  # of the middle line
        corners = [(512 + side * 9 * depth, HORIZON + 250 * depth)
                   for depth, side in [(near, -1), (near, 1), (far, 1),
                                       (far, -1)]]
        scene.polygon('road', *corners, mark=False, color=(206, 200, 206))
    for x in range(150, 900, 52):  # a crossing
        scene.polygon('road', *[
            (512 + (x + dx - 512) * (y - HORIZON) / 250, y)
            for dx, y in [(0, 412), (26, 412), (26, 444), (0, 444)]],
            mark=False, color=(206, 200, 206))


def draw_buildings(scene):
    facades = [(0, 130, 40, 352, (112, 94, 80)),
               (130, 232, 96, 320, (94, 92, 92)),
               (232, 322, 60, 300, (112, 86, 76)),
               (322, 402, 130, 282, (100, 98, 90))]
    for left, right, top, low, color in facades:
        draw_facade(scene, [(left, top), (right, top + 14), (right, low),
                            (left, low + 26)], color, 0.74)
        draw_facade(scene, [(WIDTH - left, top + 22),
                            (WIDTH - right, top + 34), (WIDTH - right, low),
                            (WIDTH - left, low + 26)], color, 1.08)
    for left, top, right in [(402, 182, 470), (552, 170, 624)]:
        draw_facade(scene, [(left, top), (right, top), (right, HORIZON),
                            (left, HORIZON)], (104, 100, 98), 0.95)
    scene.polygon('wall', (0, 344), (120, 314), (120, 346), (0, 388))
    for row in range(1, 4):  # courses of stones
        scene.line('wall', 1, (0, 344 + 11 * row), (120, 314 + 8 * row),
                   mark=False, light=0.8)
        for x in range(8 * row, 120, 24):
            y = 344 + 11 * row - x / 4
            scene.line('wall', 1, (x, y), (x, y - 9), mark=False, light=0.84)
    for x in range(826, 1024, 13):  # pickets
        y = 300 + (x - 826) * 0.26
        scene.polygon('fence', (x, y), (x + 8, y + 2), (x + 8, y + 52),
                      (x, y + 50))
        scene.line('fence', 2, (x + 7, y + 2), (x + 7, y + 52), mark=False,
                   light=0.84)
    scene.line('fence', 6, (826, 316), (1024, 368), light=0.95)


def draw_facade(scene, corners, color, light):
    """A house's front, with cornice, windows and door.

    Corners go from the outer one at the top, by the inner ones, around.
    """
    outer_top, inner_top, inner_low, outer_low = map(np.array, corners)

    def at(u, v):
        """The point at shares u of the width and v of the height."""
        top = outer_top + u * (inner_top - outer_top)
        return tuple(top + v * (
            outer_low + u * (inner_low - outer_low) - top))

    def patch(left, top, right, low, **options):
        scene.polygon('building', at(left, top), at(right, top),
                      at(right, low), at(left, low), mark=False, **options)

    scene.polygon('building', *corners, color=color, light=light)
    for row in range(40):  # courses of bricks
        scene.line('building', 0.5, at(0, row / 40), at(1, row / 40),
                   mark=False, color=color, light=light * 0.93)
    patch(0, 0, 1, 0.03, color=color, light=light * 1.15)
    patch(0, 0.03, 1, 0.045, color=color, light=light * 0.6)
    patch(0, 0.86, 1, 1, color=color, light=light * 0.78)
    n_columns = max(2, round(abs(inner_top[0] - outer_top[0]) / 24))
    n_rows = max(2, round((outer_low[1] - outer_top[1]) / 44))
    for column in range(n_columns):
        u, width = (column + 0.25) / n_columns, 0.5 / n_columns
        for row in range(n_rows):
            v, height = 0.07 + 0.8 * (row + 0.15) / n_rows, 0.5 / n_rows
            patch(u - 0.01, v - 0.005, u + width + 0.01, v + height + 0.012,
                  color=color, light=light * 1.2)
            glass = (scene.rng.uniform(0.6, 1.2) if scene.rng.random() < 0.8
                     else 1.6)  # a bright one reflects the sky
            patch(u, v, u + width, v + height, color=(50, 58, 74), light=glass)
            patch(u + width * 0.46, v, u + width * 0.54, v + height,
                  color=color, light=light)
    patch(0.42, 0.88, 0.56, 1, color=(60, 44, 40))


def draw_trees(scene):
    for x, y, size in [(200, 196, 52), (352, 214, 34), (700, 206, 40),
                       (880, 178, 62)]:
        foot = y + int(size * 2.1)
        scene.shadow((x - 4, foot - 4), (x + 4, foot - 4),
                     (x + size * 2.4, foot + size * 0.7),
                     (x + size * 1.2, foot + size * 0.8))
        scene.box('vegetation', x - size // 9, y, x + size // 9, foot,
                  light=0.72)
        scene.line('vegetation', size / 14, (x - size / 14, y),
                   (x - size / 14, foot), mark=False, light=0.95)
        for dx, dy, r in [(0, -0.2, 0.9), (-0.6, 0.2, 0.65), (0.6, 0.15, 0.7),
                          (0.1, 0.5, 0.75)]:
            scene.disc('vegetation', x + dx * size, y + dy * size, r * size,
                       light=0.62)
            draw_leaves(scene, x + dx * size, y + dy * size, r * size)
    for x in range(420, 476, 14):
        scene.disc('vegetation', x, 258, 11)


def draw_leaves(scene, x, y, radius):
    """Leaves in a disc, lighter towards the sun at the upper left."""
    for _ in range(int(radius * 12)):
        angle, distance = scene.rng.uniform((0, 0), (2 * math.pi, 1))
        dx = math.sqrt(distance) * math.cos(angle)
        dy = math.sqrt(distance) * math.sin(angle)
        light = 0.92 - 0.3 * (0.5 * dx + 0.8 * dy) + scene.rng.normal(0, 0.12)
        scene.disc('vegetation', x + dx * radius * 0.97, y + dy * radius * 0.97,
                   scene.rng.uniform(1, 2.6), mark=False, light=light)


def draw_street_furniture(scene):
    scene.shadow((297, 370), (303, 370), (388, 392), (384, 395))
    for *points, width in [((300, 372), (300, 92), (372, 92), 8),
                           ((748, 380), (748, 150), 8),
                           ((640, 310), (640, 216), 6)]:
        scene.line('pole', width, *points, light=0.92)
        scene.line('pole', width / 3, *points, mark=False, light=1.12)
    scene.box('traffic light', 358, 92, 384, 150, radius=6)
    for y, light in [(102, 0.78), (121, 0.82), (140, 1.3)]:
        scene.disc('traffic light', 371, y, 7.5, mark=False, light=light,
                   color=(224, 150, 40))
    scene.polygon('traffic sign', (748, 118), (782, 176), (714, 176))
    scene.polygon('traffic sign', (748, 130), (771, 170), (725, 170),
                  mark=False, light=1.15)
    scene.line('traffic sign', 5, (748, 142), (748, 158), mark=False,
               light=0.7)
    scene.disc('traffic sign', 748, 165, 2.5, mark=False, light=0.7)
    scene.disc('traffic sign', 640, 214, 17)
    scene.disc('traffic sign', 640, 214, 12, mark=False, light=1.15)


def draw_vehicles(scene):
    scene.box('train', 560, 222, 626, 274, radius=6)  # a tram
    scene.box('train', 564, 228, 622, 242, mark=False, light=0.6)
    scene.shadow((572, 320), (668, 318), (690, 334), (580, 332))
    scene.box('bus', 574, 232, 668, 324, radius=8)
    scene.box('bus', 580, 240, 662, 276, radius=4, mark=False, light=0.5)
    scene.polygon('bus', (584, 240), (610, 240), (596, 276), (584, 276),
                  mark=False, light=1.25)
    scene.box('bus', 580, 284, 662, 287, mark=False, light=1.35)
    for x in (586, 650):
        scene.box('bus', x - 6, 302, x + 6, 308, radius=3, mark=False,
                  light=1.5)
    scene.box('bus', 578, 314, 664, 324, radius=4, mark=False, light=0.5)
    scene.shadow((396, 294), (456, 294), (478, 304), (404, 303))
    scene.box('truck', 396, 232, 452, 298, radius=4)
    scene.box('truck', 404, 216, 452, 250, radius=3, light=1.15)
    scene.box('truck', 402, 256, 446, 274, radius=3, mark=False, light=0.55)
    scene.box('truck', 398, 286, 450, 289, mark=False, light=1.4)
    for x, y, size in [(508, 286, 0.34), (720, 368, 0.9), (352, 392, 1.0)]:
        draw_car(scene, x, y, size)
    scene.shadow((196, 458), (290, 458), (322, 470), (226, 470))
    scene.box('motorcycle', 216, 418, 268, 440, radius=10)
    scene.box('motorcycle', 222, 420, 262, 426, radius=3, mark=False,
              light=1.2)
    for x in (208, 274):
        draw_wheel(scene, 'motorcycle', x, 442, 22)


def draw_car(scene, x, y, size):
    def at(*points):
        return [(x + dx * size, y + dy * size) for dx, dy in points]

    scene.shadow(*at((-86, 24), (84, 22), (128, 40), (-60, 44)), depth=0.75)
    scene.box('car', x - 82 * size, y - 34 * size, x + 82 * size,
              y + 22 * size, radius=14 * size)
    scene.polygon('car', *at((-56, -30), (-34, -70), (36, -70), (60, -30)),
                  light=1.15)
    for window in [((-46, -32), (-30, -63), (-2, -63), (-2, -32)),
                   ((4, -32), (4, -63), (32, -63), (49, -32))]:
        scene.polygon('car', *at(*window), mark=False, light=0.66)
        scene.polygon('car', *at(window[0], window[1],
                                 (window[1][0] + 10, window[1][1]),
                                 (window[0][0] + 16, window[0][1])),
                      mark=False, light=1.2)
    (left, top), (right, _) = at((-76, -30), (76, -30))
    for i in range(8):  # the sky on the bonnet
        scene.line('car', 1.6 * size, (left, top + 1.5 * i * size),
                   (right, top + 1.5 * i * size), mark=False,
                   color=(44, 56, 158), light=1.12 - 0.05 * i)
    scene.line('car', 1.5 * size, *at((1, -30), (1, 16)), mark=False,
               light=0.75)
    for dx in (-22, 22):
        scene.line('car', 2 * size, *at((dx, -12), (dx + 9, -12)), mark=False,
                   light=1.3)
    scene.box('car', x - 78 * size, y + 12 * size, x + 78 * size,
              y + 22 * size, radius=6 * size, mark=False, light=0.72)
    for side in (-1, 1):
        wheel = x + side * 50 * size, y + 22 * size
        scene.disc('car', *wheel, 16 * size, color=(16, 16, 112), light=0.95)
        scene.disc('car', *wheel, 9 * size, mark=False, color=(44, 46, 146))
        scene.disc('car', *wheel, 3 * size, mark=False, color=(12, 12, 108))


def draw_wheel(scene, name, x, y, radius):
    scene.disc(name, x, y, radius, width=5, light=0.9)
    scene.draw('ellipse', [(x - radius + 1, y - radius + 1),
                           (x + radius - 1, y + radius - 1)], name, mark=False,
               width=1.5, light=1.25)


def draw_people(scene):
    for x, y, size in [(126, 408, 1.0), (66, 420, 1.15), (812, 402, 0.95),
                       (968, 452, 1.3)]:
        draw_person(scene, 'person', x, y, size)
    scene.shadow((826, 488), (930, 488), (968, 500), (856, 500), depth=0.4)
    for x in (846, 914):
        draw_wheel(scene, 'bicycle', x, 466, 27)
    scene.line('bicycle', 6, (846, 466), (872, 432), (904, 432), (914, 466))
    draw_person(scene, 'rider', 880, 410, 0.95)
    draw_person(scene, 'rider', 240, 398, 0.85)


def draw_person(scene, name, x, y, size):
    coat = scene.rng.uniform(0.85, 1.05)

    def at(*points):
        return [(x + dx * size, y + dy * size) for dx, dy in points]

    if name == 'person':
        scene.shadow(*at((-14, 42), (14, 42), (74, 62), (52, 66)))
    for side in (-1, 1):  # legs
        leg = at((side * 8, -12), (side * 12, 44))
        scene.line(name, int(12 * size), *leg, light=coat * 0.74)
        scene.line(name, 3 * size, *[(px - 3 * size, py) for px, py in leg],
                   mark=False, light=coat * 0.9)
    scene.box(name, x - 17 * size, y - 64 * size, x + 17 * size, y - 6 * size,
              radius=int(12 * size), light=coat)
    scene.box(name, x - 15 * size, y - 60 * size, x - 6 * size, y - 12 * size,
              radius=4 * size, mark=False, light=coat * 1.16)
    scene.box(name, x + 9 * size, y - 52 * size, x + 16 * size, y - 10 * size,
              radius=3 * size, mark=False, light=coat * 0.78)
    scene.disc(name, x, y - 78 * size, 11 * size, 13 * size,
               color=(222, 112, 96))
    scene.draw('chord', at((-11, -91), (11, -65)), name, mark=False,
               light=0.6, start=90, end=180)


def photograph(scene):
    """Return the scene as a picture: uint8, (HEIGHT, WIDTH, 3)."""
    rng = np.random.default_rng(0)
    picture = np.asarray(scene.photo.resize(
        (WIDTH, HEIGHT), Image.Resampling.BOX)).astype(np.float32)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    distance = np.hypot((x - 512) / 512, (y - HORIZON) / 250)
    haze = 0.45 * np.exp(-4 * distance)[..., np.newaxis]
    picture = picture * (1 - haze) + HAZE * haze
    sun = 1.1 - 0.16 * np.hypot(x / WIDTH - 0.2, y / HEIGHT - 0.15)
    texture = 1 + 0.05 * clouds(rng, 6) + 0.05 * clouds(rng, 60)
    picture *= (sun * texture)[..., np.newaxis]
    picture += rng.normal(0, GRAIN, (HEIGHT, WIDTH, 1))
    return recognisable(picture, np.asarray(scene.label)).clip(
        0, 255).round().astype(np.uint8)


def clouds(rng, cells):
    """Return soft noise of so many cells a column, about -1 to 1."""
    small = rng.normal(0, 0.5, (cells, 2 * cells)).astype(np.float32)
    return np.asarray(Image.fromarray(small).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def recognisable(picture, label):
    """Move each pixel towards its class's palette colour where it must be.

    It must be nearer to that colour than to any other, by MARGIN. Colours that
    are lie on one side of a plane between the two; the way to the palette
    colour is followed until it has crossed the planes of all other colours.
    """
    palette = label_colors('cityscapes').astype(np.float32)
    right = palette[label]  # (H, W, 3)
    share = np.zeros(label.shape, np.float32)  # of the way to go
    for other in palette:
        apart = np.linalg.norm(right - other, axis=2)
        there = ((picture - other) ** 2 - (picture - right) ** 2).sum(axis=2)
        wanted = 2 * apart * np.minimum(MARGIN, 0.35 * apart)
        with np.errstate(invalid='ignore', divide='ignore'):
            needed = (wanted - there) / (apart ** 2 - there)
        share = np.maximum(share, np.where(there < wanted, needed, 0))
    return picture + share[..., np.newaxis] * (right - picture)


if __name__ == '__main__':
    Image.fromarray(photograph(draw_scene())).save(sys.argv[1], optimize=True)
