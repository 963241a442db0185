"""Draw the street scene that the demo shows, in Cityscapes' classes.

    python assets/draw_street.py assets/street.png

Everything has its class's palette colour under soft light and grain, so that
the nearest palette colour is the right answer everywhere.
"""
import pathlib
import sys

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from models.classes import CITYSCAPES_NAMES, label_colors

WIDTH, HEIGHT = 1024, 512
HORIZON = 262  # row in pixels
GRAIN = 3  # grey levels, standard deviation
LIGHT = 0.05  # share by which colours brighten or darken


class Scene:
    """A label map to draw on: uint8, (HEIGHT, WIDTH)."""

    def __init__(self):
        self.image = Image.new('L', (WIDTH, HEIGHT))
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, name, *points):
        self.draw.polygon(points, CITYSCAPES_NAMES.index(name))

    def box(self, name, left, top, right, bottom, radius=0):
        self.draw.rounded_rectangle((left, top, right, bottom), radius,
                                    CITYSCAPES_NAMES.index(name))

    def disc(self, name, x, y, rx, ry=None):
        ry = ry or rx
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry),
                          CITYSCAPES_NAMES.index(name))

    def ring(self, name, x, y, radius):
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius),
                          outline=CITYSCAPES_NAMES.index(name), width=5)

    def line(self, name, width, *points):
        self.draw.line(points, CITYSCAPES_NAMES.index(name), width, 'curve')


def draw_scene():
    """Return the label map of the scene, back to front."""
    scene = Scene()
    scene.box('sky', 0, 0, WIDTH, HEIGHT)
    draw_ground(scene)
    draw_buildings(scene)
    draw_trees(scene)
    draw_street_furniture(scene)
    draw_vehicles(scene)
    draw_people(scene)
    return np.asarray(scene.image)


def draw_ground(scene):
    scene.box('terrain', 0, HORIZON, WIDTH, HEIGHT)
    scene.polygon('sidewalk', (400, HORIZON), (624, HORIZON), (WIDTH, 430),
                  (WIDTH, HEIGHT), (0, HEIGHT), (0, 430))
    scene.polygon('road', (476, HORIZON), (548, HORIZON), (930, HEIGHT),
                  (94, HEIGHT))


def draw_buildings(scene):
    for left, right, top, low in [(0, 130, 40, 352), (130, 232, 96, 320),
                                  (232, 322, 60, 300), (322, 402, 130, 282)]:
        scene.polygon('building', (left, top), (right, top + 14), (right, low),
                      (left, low + 26))
        scene.polygon('building', (WIDTH - left, top + 22),
                      (WIDTH - right, top + 34), (WIDTH - right, low),
                      (WIDTH - left, low + 26))
    scene.box('building', 402, 182, 470, HORIZON)
    scene.box('building', 552, 170, 624, HORIZON)
    scene.polygon('wall', (0, 344), (120, 314), (120, 346), (0, 388))
    for x in range(826, 1024, 13):  # pickets
        y = 300 + (x - 826) * 0.26
        scene.polygon('fence', (x, y), (x + 8, y + 2), (x + 8, y + 52),
                      (x, y + 50))
    scene.line('fence', 6, (826, 316), (1024, 368))


def draw_trees(scene):
    for x, y, size in [(200, 196, 52), (352, 214, 34), (700, 206, 40),
                       (880, 178, 62)]:
        scene.box('vegetation', x - size // 9, y, x + size // 9,
                  y + int(size * 2.1))
        for dx, dy, r in [(0, -0.2, 0.9), (-0.6, 0.2, 0.65), (0.6, 0.15, 0.7),
                          (0.1, 0.5, 0.75)]:
            scene.disc('vegetation', x + dx * size, y + dy * size, r * size)
    for x in range(420, 476, 14):
        scene.disc('vegetation', x, 258, 11)


def draw_street_furniture(scene):
    scene.line('pole', 8, (300, 372), (300, 92), (372, 92))
    scene.box('traffic light', 358, 92, 384, 150, radius=6)
    scene.line('pole', 8, (748, 380), (748, 150))
    scene.polygon('traffic sign', (748, 118), (782, 176), (714, 176))
    scene.line('pole', 6, (640, 310), (640, 216))
    scene.disc('traffic sign', 640, 214, 17)


def draw_vehicles(scene):
    scene.box('train', 560, 222, 626, 274, radius=6)  # a tram
    scene.box('bus', 574, 232, 668, 324, radius=8)
    scene.box('truck', 396, 232, 452, 298, radius=4)
    scene.box('truck', 404, 216, 452, 250, radius=3)
    for x, y, size in [(352, 392, 1.0), (508, 286, 0.34), (720, 368, 0.9)]:
        scene.box('car', x - 82 * size, y - 34 * size, x + 82 * size,
                  y + 22 * size, radius=14 * size)
        scene.polygon('car', (x - 56 * size, y - 30 * size),
                      (x - 34 * size, y - 70 * size),
                      (x + 36 * size, y - 70 * size),
                      (x + 60 * size, y - 30 * size))
        for side in (-1, 1):
            scene.disc('car', x + side * 50 * size, y + 22 * size, 16 * size)
    scene.box('motorcycle', 216, 418, 268, 440, radius=10)
    for x in (208, 274):
        scene.ring('motorcycle', x, 442, 22)


def draw_people(scene):
    for x, y, size in [(66, 420, 1.15), (126, 408, 1.0), (812, 402, 0.95),
                       (968, 452, 1.3)]:
        draw_person(scene, 'person', x, y, size)
    scene.ring('bicycle', 846, 466, 27)
    scene.ring('bicycle', 914, 466, 27)
    scene.line('bicycle', 6, (846, 466), (872, 432), (904, 432), (914, 466))
    draw_person(scene, 'rider', 880, 410, 0.95)
    draw_person(scene, 'rider', 240, 398, 0.85)


def draw_person(scene, name, x, y, size):
    scene.disc(name, x, y - 78 * size, 11 * size, 13 * size)
    scene.box(name, x - 17 * size, y - 64 * size, x + 17 * size,
              y - 6 * size, radius=int(12 * size))
    for side in (-1, 1):
        scene.line(name, int(12 * size), (x + side * 8 * size, y - 12 * size),
                   (x + side * 12 * size, y + 44 * size))


def light(label):
    """Return the scene as a picture: uint8, (HEIGHT, WIDTH, 3)."""
    rng = np.random.default_rng(0)
    colors = label_colors('cityscapes').astype(np.float32)
    y, x = np.mgrid[:HEIGHT, :WIDTH] / np.array(
        [HEIGHT, WIDTH])[:, np.newaxis, np.newaxis]
    glow = LIGHT * np.cos(3 * y + 2 * x) + 0.02 * np.sin(40 * x) * (y > 0.5)
    picture = colors[label] * (1 + glow[..., np.newaxis])
    picture += rng.normal(0, GRAIN, picture.shape[:2])[..., np.newaxis]
    return picture.clip(0, 255).round().astype(np.uint8)


if __name__ == '__main__':
    Image.fromarray(light(draw_scene())).save(sys.argv[1], optimize=True)
