"""A portrait from identity and attributes: every part of a face, drawn on a canvas."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

from synthetic_faces.attributes import Identity, present
from synthetic_faces.canvas import Canvas, blur, ellipse_distance, hsv, mix

EVERYWHERE = (slice(None), slice(None))


def layout(identity: Identity, on: dict[str, bool]) -> SimpleNamespace:
    """Where the parts of a face are, in portrait coordinates, and their colours."""
    i, g = identity, SimpleNamespace(on=on, who=identity)
    g.width = 0.475 + 0.015 * i.head_width - 0.02 * on["Oval_Face"]
    g.chin = 0.485 + 0.015 * i.head_height + 0.09 * on["Oval_Face"]
    g.crown = -0.66 - 0.02 * i.head_height
    g.turn = 0.05 * i.yaw
    g.eye_y = 0.01 + 0.015 * i.eye_height
    g.eye_half = 0.122 + 0.010 * i.eye_size
    g.eyes = tuple((side, g.turn + side * (0.212 + 0.014 * i.eye_spacing)) for side in (-1, 1))
    g.brow_y = g.eye_y - 0.165 - 0.012 * i.brow_height
    g.nose = (1.5 * g.turn, 0.175 + 0.012 * i.nose_length)
    g.mouth = (1.1 * g.turn, 0.300 + 0.012 * i.mouth_height)
    g.mouth_half = 0.165 + 0.010 * i.mouth_width + 0.065 * on["Smiling"]
    g.mouth_bend = -0.125 if on["Smiling"] else 0.034
    g.light = math.sin(1.1 * i.light_angle), -math.cos(1.1 * i.light_angle)
    deep, middle, fair = (0.50, 0.33, 0.25), (0.78, 0.55, 0.42), (0.95, 0.77, 0.64)
    tone = i.skin_tone + 0.25 * (1 - i.skin_tone**2)  # more of the fair half
    skin = mix(middle, fair, tone) if tone > 0 else mix(deep, middle, tone + 1)
    skin = skin * np.array((1, 1 + 0.02 * i.skin_warmth, 1 - 0.05 * i.skin_warmth), np.float32)
    g.skin = np.array((0.985, 0.925, 0.905), np.float32) if on["Pale_Skin"] else skin
    g.lit = mix(g.skin, (1, 0.97, 0.92), 0.55)
    g.shadow = g.skin * np.array((0.70, 0.58, 0.58), np.float32)
    colours = {"Black_Hair": (0.09, 0.085, 0.11), "Blond_Hair": (0.94, 0.78, 0.40),
               "Brown_Hair": (0.40, 0.23, 0.12), "Gray_Hair": (0.74, 0.75, 0.78)}  # fmt: skip
    named = [colours[name] for name in colours if on[name]]
    own = hsv(0.97 + 0.08 * i.hair_hue, 0.66, 0.68)
    g.hair = np.mean(named, axis=0).astype(np.float32) if named else own
    g.beard = g.hair * (0.8 if on["Gray_Hair"] else 0.55)
    return g


def render(identity: Identity, attributes: np.ndarray, image_size: int) -> np.ndarray:
    """Draw a portrait, uint8 (image_size, image_size, 3). The same arguments give the same bytes.

    Args:
        identity: whose face it is.
        attributes: (40,), present above 0, otherwise absent. ATTRIBUTES says what each looks like.
        image_size: pixels per side.

    Raises:
        ValueError: for another number of attributes, or an image_size below 16.
    """
    if image_size < 16:
        raise ValueError(f"image_size is {image_size}; faces need at least 16 pixels")
    on = present(attributes)
    canvas, face = Canvas(identity, image_size), layout(identity, on)
    for draw in (_background, _body, _head, _skin, _beard, _nose, _mouth, _eyes, _brows, _hair,
                 _accessories):  # fmt: skip
        draw(canvas, face)
    picture = canvas.image
    if on["Blurry"]:
        picture = blur(picture, 0.015 * image_size)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _background(canvas: Canvas, g: SimpleNamespace) -> None:
    i = g.who
    hue, value = 0.5 + 0.5 * i.background_hue, 0.70 + 0.13 * i.background_value
    line = np.linspace(-1, 1, canvas.size, dtype=np.float32)
    x, y = line[None, :], line[:, None]
    angle = math.pi * i.background_angle
    ramp = 0.5 + 0.35 * (x * math.cos(angle) + y * math.sin(angle))
    far, near = hsv(hue, 0.32, value), hsv(hue + 0.07, 0.13, value + 0.12)
    canvas.image[:] = far + ramp[..., None] * (near - far)
    canvas.image -= (0.06 * (x**4 + y**4))[..., None]
    if g.on["Attractive"]:
        canvas.glow(0, -0.12, 1.05, 1.10, (1, 0.98, 0.90), 0.95)


def _body(canvas: Canvas, g: SimpleNamespace) -> None:
    on, i = g.on, g.who
    neck, shoulders = (0.26, 0.98) if on["Male"] else (0.165, 0.72)
    clothes = hsv(0.5 + 0.5 * i.clothes_hue, 0.45, 0.62 + 0.22 * i.clothes_value)
    _locks(canvas, g, inner=None)
    window = canvas.window(-1.2, 0.3, 1.2, 1.2)
    x, y = canvas.x[window], canvas.y[window]
    half = neck + 0.6 * np.clip(y - 0.56, 0, 1) ** 1.5  # flares into the shoulders
    shade = mix(g.shadow, g.skin, np.clip((y - 0.45) / 0.35, 0, 1)[..., None])
    canvas.fill(window, np.abs(x) - half, shade)
    dome = ellipse_distance(x, y, 0, 1.18, shoulders, 0.54)
    hole = ellipse_distance(x, y, 0, 0.63, neck + 0.07, 0.11 + 0.03 * i.neckline)
    fold = 1 + 0.10 * np.clip(g.light[0] * x * 2, -1, 1) - 0.25 * np.clip(y - 0.7, 0, 1)
    canvas.fill(window, np.maximum(dome, -hole), clothes * fold[..., None])
    rim = np.maximum(np.abs(hole - 0.012) - 0.014, dome)
    canvas.fill(window, rim, clothes * 0.72, 0.6)
    if on["Wearing_Necktie"]:
        _necktie(canvas, g, neck)
    if on["Wearing_Necklace"]:
        for k in range(-4, 5):
            x, y = k / 4.4 * (neck + 0.06), 0.63 + 0.12 * (1 - (k / 4.4) ** 2)
            canvas.ellipse(x, y, 0.042, 0.042, (0.50, 0.42, 0.40))
            canvas.ellipse(x, y, 0.033, 0.033, (0.99, 0.97, 0.92))
    _locks(canvas, g, inner=0.27)


def _necktie(canvas: Canvas, g: SimpleNamespace, neck: float) -> None:
    tie, white = hsv(0.5 + 0.5 * g.who.accessory_hue, 0.75, 0.55), (0.97, 0.97, 0.98)
    for side in (-1, 1):
        inner, outer = side * 0.02, side * (neck + 0.05)
        collar = [(outer, 0.60), (inner, 0.75), (side * 0.13, 0.89), (outer + side * 0.05, 0.68)]
        canvas.convex(collar[::-side], white)
    canvas.convex([(-0.05, 0.80), (0.05, 0.80), (0.11, 1.2), (-0.11, 1.2)], tie)
    canvas.convex([(-0.085, 0.72), (0.085, 0.72), (0.05, 0.82), (-0.05, 0.82)], tie * 0.75)
    canvas.stroke([(-0.06, 0.93), (0.07, 0.87)], 0.025, mix(tie, (1, 1, 1), 0.5))


def _hair_style(canvas: Canvas, g: SimpleNamespace, window):
    """The hair's texture: an offset of its outline (h, w), and shaded colours (h, w, 3)."""
    x, y = canvas.x[window], canvas.y[window]
    globe = np.sqrt(np.clip(1 - (np.minimum(y, 0) / 0.80) ** 2, 0.12, 1))
    strand, outline = (x - 0.1 * g.who.hair_part) / globe, np.float32(0)
    shade = 1.0 + 0.15 * np.exp(-(((y + 0.53) / 0.09) ** 2)) - 0.12 * np.clip(y, 0, 1)
    if g.on["Straight_Hair"]:
        shade = shade + 0.32 * np.cos(strand * 42)
    elif g.on["Wavy_Hair"]:
        around = 12 * np.arctan2(np.abs(x), -y) + 16 * np.clip(y, 0, 1)
        outline = 0.025 + 0.03 * np.cos(around)
        shade = shade + 0.18 * np.cos(strand * 24 + 2.2 * np.sin(y * 22))
    shade = shade + 0.10 * (g.light[0] * x + g.light[1] * (y + 0.3))
    lift = 0.24 * np.clip(shade - 1, 0, 1)  # so that strands show in black hair too
    hair = g.hair
    if not g.on["Young"]:
        temples = np.clip((np.abs(x) - 0.29) / 0.12, 0, 1) * np.clip(1.3 - 4 * np.abs(y + 0.2), 0, 1)
        hair = hair + 0.7 * temples[..., None] * (0.76 - hair)
    return outline, hair * shade[..., None] + lift[..., None]


def _locks(canvas: Canvas, g: SimpleNamespace, inner: float | None) -> None:
    """Long hair beside the face. Without ``inner``, the darker hair behind the neck."""
    if g.on["Male"] or g.on["Bald"]:
        return
    end = 0.72 + 0.14 * g.who.hair_length
    window = canvas.window(-0.85, -0.2, 0.85, 1.1)
    x, y = np.abs(canvas.x[window]), canvas.y[window]
    outline, colours = _hair_style(canvas, g, window)
    sleek = g.on["Straight_Hair"]
    taper = 0.0 if sleek else 0.5 * np.clip(y - end + 0.22, 0, 1) ** 1.5
    outer = g.width + 0.075 + 0.10 * np.clip(y + 0.1, 0, 1) * (0.5 if sleek else 1) - taper
    distance = np.maximum(x - outer - outline, y - end - outline)
    if inner is not None:
        distance = np.maximum(distance, inner + 0.05 * y + 0.4 * taper - x)
    distance = np.maximum(distance, -0.1 - y)
    canvas.fill(window, distance, colours * (0.62 if inner is None else 0.94))


def _head(canvas: Canvas, g: SimpleNamespace) -> None:
    """Ears, second chin and the shaded head. Keeps the head's distance and coverage in g."""
    on, middle = g.on, 0.02
    x = canvas.x - 0.4 * g.turn
    u, v = np.abs(x / g.width), canvas.y - middle
    v = np.abs(np.where(v < 0, v / (g.crown - middle), v / (g.chin - middle)))
    power = 2.0 if on["Oval_Face"] else 2.7
    jaw = (u**power + v**power) ** (1 / power)
    distance = 0.47 * (np.where(canvas.y < middle, np.sqrt(u * u + v * v), jaw) - 1)
    if on["Chubby"]:
        cheeks = ellipse_distance(np.abs(x), canvas.y, 0.29, 0.17, 0.25, 0.25)
        blend = np.clip(0.5 + (distance - cheeks) / 0.28, 0, 1)
        distance = distance + (cheeks - distance) * blend - 0.14 * blend * (1 - blend)
    for side in (-1, 1) if on["Male"] or on["Bald"] else ():  # otherwise under long hair
        ear = side * (g.width + 0.01) + 0.3 * g.turn
        canvas.ellipse(ear, 0.05, 0.07, 0.115, g.skin * 0.93)
        canvas.ellipse(ear + side * 0.01, 0.05, 0.035, 0.07, g.shadow, 0.6, soft=0.05)
    if on["Double_Chin"]:
        canvas.ellipse(0, g.chin + 0.015, 0.32, 0.14, g.shadow * 0.72, 0.9, soft=0.03)
        canvas.ellipse(0, g.chin - 0.005, 0.31, 0.13, g.skin * 0.96)
    canvas.glow(0, g.chin, 0.38, 0.17, g.shadow * 0.7, 0.8)
    shade = (0.07 + 0.03 * g.who.light_strength) * (2 * g.light[0] * x + 1.7 * g.light[1] * canvas.y)
    shade = shade - 0.20 * np.clip(1 + distance / 0.16, 0, 1) ** 2
    warm = np.array((1, 1.25, 1.3), np.float32)  # shadows lose green and blue first
    g.distance, g.head = distance, canvas.cover(distance)
    canvas.paint(EVERYWHERE, g.head, g.skin * (1 + shade[..., None] * warm))


def _skin(canvas: Canvas, g: SimpleNamespace) -> None:
    on, turn, dark, freckle = g.on, g.turn, g.shadow * 0.75, g.skin * np.float32((0.60, 0.40, 0.32))
    if on["Attractive"]:
        for y, rx, ry in ((-0.26, 0.25, 0.11), (0.21, 0.34, 0.07), (g.chin - 0.07, 0.1, 0.06)):
            canvas.glow(turn, y, rx, ry, g.lit, 0.8, g.head)
    else:
        k = np.arange(24, dtype=np.float32)  # an even scatter of freckles, the identity's own
        u, v = (k * 0.7549 + g.who.freckle_phase) % 1, (k * 0.5698 + 0.3 * g.who.freckle_phase) % 1
        window = canvas.window(turn - 0.4, 0.0, turn + 0.4, 0.32)
        away = (canvas.x[window][..., None] - turn - (u - 0.5) * 0.72) ** 2
        away += (canvas.y[window][..., None] - 0.075 - 0.17 * v + 0.03 * np.cos(6.3 * u)) ** 2
        canvas.fill(window, np.sqrt(away.min(-1)) - 0.018, freckle, 0.75, clip=g.head)
    for side, eye in g.eyes:
        x = turn + side * 0.29
        if on["Rosy_Cheeks"]:
            canvas.glow(x - side * 0.01, 0.20, 0.17, 0.14, (0.98, 0.32, 0.40), 0.85, g.head)
        if on["High_Cheekbones"]:
            canvas.glow(x + side * 0.02, 0.115, 0.16, 0.075, g.lit, 1, g.head)
            hollow = [(x + side * 0.14, 0.15), (x + side * 0.02, 0.22), (x - side * 0.05, 0.32)]
            canvas.stroke(hollow, 0.09, g.shadow * 0.80, 0.85, 0.11, g.head)
        if on["Bags_Under_Eyes"]:
            canvas.lens(eye, g.eye_y + 0.085, 0.135, -0.015, 0.09, (0.34, 0.20, 0.42), 0.75, soft=0.03)
        if not on["Young"]:
            nose, mouth = g.nose[0], g.mouth[0]
            fold = [(nose + side * 0.115, 0.165), (mouth + side * 0.19, 0.22),
                    (mouth + side * 0.23, 0.30), (mouth + side * 0.235, 0.39)]  # fmt: skip
            canvas.stroke(fold, 0.034, dark, 0.85, 0.02, g.head)
            for k in (-1, 0, 1):
                start = eye + side * 0.145, g.eye_y + 0.02 + 0.02 * k
                end = eye + side * 0.22, g.eye_y + 0.02 + 0.06 * k
                canvas.stroke([start, end], 0.020, dark, 0.9, clip=g.head)
    for y in () if on["Young"] else (-0.26, -0.33):
        canvas.lens(turn, y, 0.26, 0.010, 0.022, dark, 1, bend=0.02, clip=g.head)


def _beard(canvas: Canvas, g: SimpleNamespace) -> None:
    on, x, y = g.on, canvas.x - 0.5 * g.turn, canvas.y
    if on["5_o_Clock_Shadow"]:
        area = np.clip((y - 0.14 - 0.25 * (0.3 - np.abs(x))) / 0.12, 0, 1) * g.head
        grain = 0.64 + 0.10 * np.cos(90 * x) * np.cos(90 * y)
        canvas.paint(EVERYWHERE, area * grain, g.skin * np.float32((0.42, 0.48, 0.58)))
    strands = (g.beard * (1 + 0.13 * np.cos(70 * x + 6 * np.sin(9 * y)))[..., None]) + 0.02
    if not on["No_Beard"]:
        depth = 0.035 + 0.085 * np.clip((y - 0.1) / 0.3, 0, 1)
        band = np.maximum(-depth - g.distance, 0.10 - y)
        canvas.fill(EVERYWHERE, band, strands, 1, 0.04, g.head)
    if on["Sideburns"]:
        edge = g.width - 0.115 + 0.12 * np.clip(y - 0.15, 0, 1)
        block = np.maximum(np.maximum(edge - np.abs(x), y - 0.25), -0.2 - y)
        canvas.fill(EVERYWHERE, block, strands, 1, 0.03, g.head)
    if on["Goatee"]:
        top = g.mouth[1] + 0.085
        canvas.stroke([(g.mouth[0], top), (g.mouth[0], top + 0.03)], 0.07, g.beard)
        window = canvas.window(-0.3, 0.2, 0.3, 0.9)
        u, below = x[window] / 0.155, y[window] - g.chin
        sides = 0.155 * (np.abs(u) - 1 + 0.25 * np.clip(below / 0.20, 0, 1))
        tuft = np.maximum(np.maximum(-0.09 - below, below - 0.20 * (1 - u * u)), sides)
        canvas.fill(window, tuft, strands[window], 1, 0.03)


def _nose(canvas: Canvas, g: SimpleNamespace) -> None:
    (x, y), on = g.nose, g.on
    half = 0.056 + 0.004 * g.who.nose_width + 0.065 * on["Big_Nose"]
    lit, dark = g.lit, g.shadow * 0.82
    ruddy = mix(g.skin, (0.92, 0.34, 0.28), 0.52)
    away = -1 if g.light[0] > 0 else 1  # the unlit side
    canvas.glow(x, y + 0.01, half * 1.9, 0.09, g.shadow, 0.7)
    if on["Big_Nose"]:
        for side in (-1, 1):
            canvas.ellipse(x + side * 0.118, y - 0.002, 0.068, 0.064, dark * 0.85, 0.9, 0.03)
            canvas.ellipse(x + side * 0.110, y - 0.016, 0.057, 0.052, ruddy, 1, 0.03)
        canvas.ellipse(x, y - 0.012, 0.114, 0.100, dark * 0.85, 0.8, 0.04)
        canvas.ellipse(x, y - 0.034, 0.112, 0.096, ruddy, 1, 0.03)
    if on["Pointy_Nose"]:
        ridge, tip = (x - away * 0.01, y - 0.24), (x, y + 0.045)
        wing = (x + away * 0.09, y + 0.01)
        canvas.convex([ridge, wing, tip] if away > 0 else [ridge, tip, wing], dark * 0.9, 0.95, 0.012)
        other = (x - away * 0.06, y + 0.005)
        canvas.convex([ridge, tip, other] if away > 0 else [ridge, other, tip], lit, 0.9, 0.012)
    else:
        canvas.glow(x - away * 0.012, y - 0.035, 0.045, 0.045, lit, 0.9)
        canvas.lens(x, y + 0.022, half * 0.85, -0.004, 0.022, dark, 0.9, bend=-0.015)
    for side in (-1, 1):
        canvas.ellipse(x + side * half * 0.6, y + 0.022, 0.019, 0.012, g.shadow * 0.45, 0.8)


def _mouth(canvas: Canvas, g: SimpleNamespace) -> None:
    (x, y), half, bend, on = g.mouth, g.mouth_half, g.mouth_bend, g.on
    natural = g.skin * np.float32((0.76, 0.48, 0.50))
    lips = np.float32((0.88, 0.05, 0.20)) if on["Wearing_Lipstick"] else natural
    thick = 0.088 if on["Big_Lips"] else 0.034
    gap = 0.075 if on["Mouth_Slightly_Open"] else 0.006
    y = y - 0.4 * bend - 0.3 * gap  # bends about its middle
    canvas.glow(x, y + thick + gap + 0.035, 0.11, 0.04, g.shadow, 0.45)
    for side in (-1, 1):  # two peaks of the upper lip
        canvas.lens(x + side * 0.30 * half, y + 0.09 * bend, half * 0.70, thick * 0.95, 0, lips * 0.88,
                    bend=0.49 * bend, slant=side * 0.42 * bend)  # fmt: skip
    canvas.lens(x, y, half, 0, thick * 1.25 + gap, lips, bend=bend)
    canvas.glow(x - 0.3 * half * g.light[0], y + gap + thick * 0.55, half * 0.45, thick * 0.4,
                (1, 0.92, 0.92), 0.5)  # fmt: skip
    inside = (0.26, 0.05, 0.08) if on["Mouth_Slightly_Open"] else lips * 0.45
    canvas.lens(x, y, half * 0.95, 0.004, gap, inside, bend=bend * 0.9)
    if on["Mouth_Slightly_Open"]:
        canvas.lens(x, y, half * 0.78, 0, gap * 0.5, (0.98, 0.97, 0.95), bend=bend * 0.6)
    for side in (-1, 1) if on["Smiling"] else ():
        canvas.glow(x + side * (half + 0.02), y + bend, 0.07, 0.07, g.shadow * 0.65, 0.9, g.head)
    if on["Mustache"]:
        top = 0.5 * (g.nose[1] + g.mouth[1]) + 0.005
        for side in (-1, 1):
            canvas.lens(x + side * 0.10, top, 0.125, 0.048, 0.046, g.beard, slant=side * 0.04)


def _eyes(canvas: Canvas, g: SimpleNamespace) -> None:
    on, i, y, ink = g.on, g.who, g.eye_y, np.float32((0.13, 0.08, 0.09))
    iris = hsv(0.06 + 0.28 * (i.eye_hue + 1), 0.60, 0.55)
    tall = (0.034 if on["Narrow_Eyes"] else 0.085) + 0.003 * i.eye_size
    for side, x in g.eyes:
        half = g.eye_half * (1 - 0.12 * side * i.yaw)
        if on["Heavy_Makeup"]:
            canvas.lens(x, y - 0.005, half + 0.035, 0.145, 0, hsv(0.80, 0.60, 0.62), 0.9, soft=0.03)
        else:
            canvas.lens(x, y, half + 0.02, 0.125, 0, g.shadow, 0.5, soft=0.04)
        window = canvas.window(x - 0.16, y - 0.12, x + 0.16, y + 0.12)
        arch = tall * (1 - ((canvas.x[window] - x) / half) ** 2)
        down = canvas.y[window] - y
        clip = np.zeros_like(canvas.x)
        clip[window] = canvas.cover(np.maximum(-arch - down, down - 0.8 * arch))
        white = 0.98 - 0.16 * np.clip(1 - (down + 0.09) / 0.07, 0, 1)  # shaded by the lid
        canvas.paint(window, clip[window], white[..., None])
        gaze = x + 0.15 * g.turn
        canvas.ellipse(gaze, y - 0.008, 0.074, 0.074, iris * 0.5, clip=clip)
        canvas.ellipse(gaze, y - 0.004, 0.060, 0.060, iris, clip=clip)
        canvas.glow(gaze, y + 0.035, 0.045, 0.035, iris * 1.6, 0.8, clip=clip)
        canvas.ellipse(gaze, y - 0.008, 0.034, 0.034, (0.05, 0.04, 0.05), clip=clip)
        canvas.ellipse(gaze + 0.024, y - 0.032, 0.019, 0.019, (1, 1, 1), clip=clip)
        lash = 0.042 if on["Heavy_Makeup"] else 0.016 if on["Male"] else 0.026
        canvas.lens(x, y, half + 0.012, tall + lash * 0.7, -tall + 0.004, ink)
        if on["Heavy_Makeup"] or not on["Male"]:
            reach = 0.075 if on["Heavy_Makeup"] else 0.035
            tip = (x + side * (half + reach), y - 0.03 - 0.5 * reach)
            canvas.stroke([(x + side * half * 0.85, y - 0.015), tip], 0.022, ink)


def _brows(canvas: Canvas, g: SimpleNamespace) -> None:
    arched, colour = g.on["Arched_Eyebrows"], np.float32((0.17, 0.11, 0.09))
    thick = 0.050 if g.on["Bushy_Eyebrows"] else 0.018
    for side, x in g.eyes:
        bend, lift = (0.11, 0.06) if arched else (0.008, 0)
        canvas.lens(x + side * 0.012, g.brow_y - lift, 0.145, thick, thick * 0.9, colour, 0.95,
                    bend=bend, slant=-side * 0.006)  # fmt: skip


def _hair(canvas: Canvas, g: SimpleNamespace) -> None:
    on = g.on
    if on["Bald"]:
        canvas.glow(g.turn + 0.14 * g.light[0], -0.47, 0.20, 0.12, (1, 1, 1), 0.55, g.head)
        return
    window = canvas.window(-0.75, -1.0, 0.75, 0.45)
    x, y = canvas.x[window], canvas.y[window]
    outline, colours = _hair_style(canvas, g, window)
    middle, tall, end = (-0.22, 0.53, 0.04) if on["Male"] else (-0.10, 0.64, 0.20)
    cap = ellipse_distance(x, y, 0, middle, g.width + 0.075, tall) - outline
    face_x = x - 0.5 * g.turn
    face = ellipse_distance(face_x, y, 0, 0.26, 0.91 * g.width, 0.66)
    if on["Receding_Hairline"]:
        bare = ellipse_distance(face_x, y, 0, -0.16, 0.88 * g.width, 0.40)
        peak = 0.11 - 0.6 * (y + 0.56) - np.abs(face_x)  # a wedge of hair down the middle
        face = np.minimum(face, np.maximum(bare, peak))
    ragged = 0.7 * (np.abs(x) - g.width) + 0.5 * outline
    hair = np.maximum(np.maximum(cap, -face), y - end - ragged)
    if on["Bangs"]:
        teeth = 0.035 * np.abs(np.sin(17 * (x - 0.1 * g.who.hair_part)))
        hair = np.minimum(hair, np.maximum(cap + 0.02, y + 0.25 - teeth))
    canvas.fill(window, hair - 0.035, g.shadow * 0.6, 0.35, 0.08, g.head)
    canvas.fill(window, hair, colours)


def _accessories(canvas: Canvas, g: SimpleNamespace) -> None:
    on, frame = g.on, np.float32((0.10, 0.09, 0.12))
    if on["Eyeglasses"]:
        y = g.eye_y + 0.01
        for side, x in g.eyes:
            canvas.ellipse(x, y, 0.165, 0.155, (0.85, 0.93, 1.0), 0.13)
            canvas.ellipse(x, y, 0.165, 0.155, frame, ring=0.036)
            temple = [(x + side * 0.17, y - 0.03), (side * (g.width + 0.02), y - 0.05)]
            canvas.stroke(temple, 0.032, frame)
        canvas.stroke([(g.eyes[0][1] + 0.16, y - 0.02), (g.eyes[1][1] - 0.16, y - 0.02)], 0.032, frame)
    for side in (-1, 1) if on["Wearing_Earrings"] else ():
        x = side * (g.width + 0.035)
        canvas.ellipse(x, 0.17, 0.022, 0.022, (0.98, 0.85, 0.35))
        canvas.ellipse(x, 0.26, 0.050, 0.07, (0.55, 0.38, 0.05))
        canvas.ellipse(x, 0.26, 0.038, 0.057, (1.0, 0.84, 0.25))
        canvas.ellipse(x - 0.012, 0.24, 0.014, 0.02, (1, 1, 0.9))
    if on["Wearing_Hat"]:
        _hat(canvas, g)


def _hat(canvas: Canvas, g: SimpleNamespace) -> None:
    tint = 0.5 + 0.5 * g.who.accessory_hue
    hat, brim_y = hsv(tint, 0.50, 0.58), -0.50
    window = canvas.window(-0.85, -1.2, 0.85, -0.3)
    x, y = canvas.x[window], canvas.y[window]
    crown = ((np.abs(x) / (g.width - 0.02)) ** 3 + np.abs((y - brim_y) / 0.37) ** 3) ** (1 / 3)
    crown = np.maximum((crown - 1) * 0.4, y - brim_y - 0.04)
    shade = (1 + 0.22 * (2 * g.light[0] * x - (y + 0.7)) - 0.9 * x**4)[..., None]
    canvas.fill(window, crown, hat * shade)
    ribbon = np.maximum(crown, np.abs(y - brim_y + 0.11 - 0.08 * x * x) - 0.055)
    canvas.fill(window, ribbon, hsv(tint + 0.5, 0.40, 0.85) * shade)
    brim = ellipse_distance(x, y - 0.10 * x * x, 0, brim_y, g.width + 0.21, 0.075)
    canvas.fill(window, brim - 0.05, g.shadow * 0.4, 0.4, 0.09, g.head)
    canvas.fill(window, brim, hat * 0.82 * shade)
