"""The numba engine, part 2: sorting, binning into tiles, compositing, and its derivative.

Tiles are 8 pixels wide and 16 high, so a row of a tile is one vector of 8 floats, and the rows that a Gaussian
touches are one contiguous run of the tile's pixels: the loop over them becomes straight vector code.

Forward, per tile and front to back, as in `reference.py`. A finished pixel keeps its transmittance with a minus sign.

Backward, also front to back. For a pixel with gradients v_rgb, v_z, v_alpha let cv_i = c_i . v_rgb + z_i v_z and

    R_j = sum_{i>j} T_i alpha_i cv_i - T_end v_alpha           what lies behind j, as the loss sees it
    dL/dalpha_j = T_j cv_j - R_j / (1 - alpha_j)               compositing is affine in every alpha

R starts as (rgb . v_rgb + depth v_z - T_end v_alpha) and loses one term per step: one running number per pixel
instead of one per channel, and no second traversal. With u = dL/dsigma = -alpha dL/dalpha (0 where alpha was clamped
to MAX_ALPHA) all gradients of a Gaussian are sums over its pixels of

    u, u dx, u dy, u dx^2, u dx dy, u dy^2, w v_rgb, w v_z         (GRADS columns; w = T alpha)

kept per (Gaussian, tile) and added up in a fixed order later: results do not depend on threads. To accumulate one more
number per Gaussian, add a column here and sum it in `numba_projection.project_backward`.

With a target picture two more numbers are kept, what the picture loses if Gaussian j is taken away (`contribution`):

    S_j = sum_{i>j} T_i alpha_i c_i + T_end background,    dC_j = w_j c_j - S_j alpha_j / (1 - alpha_j)
    L1:  |C - C*| - |C - dC_j - C*|,    L2:  (C - C*)^2 - (C - dC_j - C*)^2,      summed over channels and pixels

S starts as C, the whole pixel with its background, and loses one term per step, channel by channel.
"""

import math

import numpy as np

from gsgen_lib.raster.numba_setup import jit

TILE_W, TILE_H = 8, 16
PIXELS = TILE_W * TILE_H
GRADS, CONTRIBUTIONS = 10, 2  # columns: of gradients; of L1 and L2, if there is a target
CHECK_EVERY = 32  # Gaussians between two looks at whether the whole tile is finished

f4 = np.float32
ZERO, HALF, ONE = f4(0), f4(0.5), f4(1)
SIGMA_CAP = f4(8)  # exp(-8) is far below 1/255
# Unsigned pixel indices: a signed one would be tested for Python's negative indexing, which stops vectorisation.
index = np.uintp
ROW1, ROW2, ROW3, ROW4, ROW5, ROW6, ROW7 = (index(k * PIXELS) for k in range(1, 8))
ROW8, ROW9, ROW10, ROW11, ROW12, ROW13 = (index(k * PIXELS) for k in range(8, 14))
TWO = f4(2)


@jit()
def sort_by_depth(attr, order):
    """Indices of the visible Gaussians of one image, nearest first, ties in index order. Returns how many.

    attr: (N, ATTR); order: (N,) int32. Depths are positive floats, whose bits sort like integers: a radix sort of
    three passes over 11 bits each.
    """
    n = 0
    for i in range(attr.shape[0]):
        if attr[i, 5] > 0:
            order[n] = i
            n += 1
    keys, keys2, order2 = np.empty(n, np.uint32), np.empty(n, np.uint32), np.empty(n, np.int32)
    depth = np.empty(n, np.float32)
    for i in range(n):
        depth[i] = attr[order[i], 9]
    keys[:] = depth.view(np.uint32)
    for shift in (0, 11, 22):
        start = np.zeros(2049, np.int64)
        for i in range(n):
            start[((keys[i] >> shift) & 2047) + 1] += 1
        for i in range(2048):
            start[i + 1] += start[i]
        for i in range(n):
            digit = (keys[i] >> shift) & 2047
            keys2[start[digit]], order2[start[digit]] = keys[i], order[i]
            start[digit] += 1
        keys[:], order[:n] = keys2, order2
    return n


@jit()
def count_candidates(attr, radii, order, n, tiles_x, tiles_y, first, base):
    """first[i] = where the tile entries of Gaussian i begin (upper bound by bounding box). Returns the end."""
    for j in range(n):
        i = order[j]
        x0, x1, y0, y1 = bounding_tiles(attr, radii, i, tiles_x, tiles_y)
        first[i] = base
        base += (x1 - x0) * (y1 - y0)
    return base


@jit()
def bounding_tiles(attr, radii, i, tiles_x, tiles_y):
    """Half-open tile ranges of a bounding box, clamped to the image before the cast to integers."""
    x, y, rx, ry = attr[i, 0] + float(attr[i, 10]), attr[i, 1] + float(attr[i, 11]), float(radii[i, 0]), float(radii[i, 1])
    x0 = int(max(min(math.floor((x - rx) / TILE_W), float(tiles_x)), 0.0))
    x1 = int(max(min(math.floor((x + rx) / TILE_W) + 1, float(tiles_x)), float(x0)))
    y0 = int(max(min(math.floor((y - ry) / TILE_H), float(tiles_y)), 0.0))
    y1 = int(max(min(math.floor((y + ry) / TILE_H) + 1, float(tiles_y)), float(y0)))
    return x0, x1, y0, y1


@jit()
def bin_tiles(start, stop, attr, radii, order, tiles_x, tiles_y, first, count, entry_tile, entry_rows, entry_gaussian,
              histogram, alpha_min):
    """Write the (Gaussian, tile) entries of order[start:stop]: tile, rows within it, and who it is.

    Within a strip of 8 columns the ellipse sigma <= log(255 opacity) covers a known range of rows: its highest point
    lies at dx* = -m dy_max, or at the strip's nearer edge. Only these rows are visited later.
    histogram: (tiles,) entries per tile of this chunk.
    """
    for j in range(start, stop):
        i = order[j]
        x, y = float(attr[i, 0]) + attr[i, 10], float(attr[i, 1]) + attr[i, 11]
        m, tau = float(attr[i, 3]), math.log(attr[i, 5] / alpha_min) + 1e-4
        c, inv_A = 0.5 / attr[i, 4], 0.5 / attr[i, 2]  # cov_yy and 1 / A
        y_max = math.sqrt(2 * tau * c)
        cov_xx = inv_A + m * m * c
        x_max = math.sqrt(2 * tau * cov_xx)
        slope, width2 = m * c / cov_xx, c * inv_A / cov_xx  # dy given dx: mean -slope dx, variance width2
        top = -m * y_max  # dx at the ellipse's largest dy
        x0, x1, y0, y1 = bounding_tiles(attr, radii, i, tiles_x, tiles_y)
        k = first[i]
        for tx in range(x0, x1):
            left = max(tx * TILE_W + 0.5 - x, -x_max)
            right = min(tx * TILE_W + 7.5 - x, x_max)
            if left > right + 1e-3:
                continue
            dx = min(max(top, left), right)
            high = (-slope * dx + math.sqrt(max((2 * tau - dx * dx / cov_xx) * width2, 0.0)))
            dx = min(max(-top, left), right)
            low = (-slope * dx - math.sqrt(max((2 * tau - dx * dx / cov_xx) * width2, 0.0)))
            # pixel rows whose centre lies in [y + low, y + high], a little widened against rounding
            r0 = int(max(min(math.ceil(y + low - 0.502), float(y1 * TILE_H)), float(y0 * TILE_H)))
            r1 = int(max(min(math.floor(y + high - 0.498) + 1, float(y1 * TILE_H)), float(r0)))
            for ty in range(r0 // TILE_H, (r1 + TILE_H - 1) // TILE_H):
                a, b = max(r0 - ty * TILE_H, 0), min(r1 - ty * TILE_H, TILE_H)
                if a < b:
                    tile = ty * tiles_x + tx
                    entry_tile[k], entry_rows[k], entry_gaussian[k] = tile, a * 256 + b, i
                    histogram[tile] += 1
                    k += 1
        count[i] = k - first[i]


@jit()
def scatter_to_tiles(start, stop, order, first, count, entry_tile, position, entries):
    """Append this chunk's entries to the lists of their tiles, at `position` (tiles,), advancing it."""
    for j in range(start, stop):
        i = order[j]
        for k in range(first[i], first[i] + count[i]):
            tile = entry_tile[k]
            entries[position[tile]] = k
            position[tile] += 1


@jit(fastmath=True)
def exp_neg(x):
    """exp(-x) for x in [0, log 255], to 2e-6: a polynomial of x/8, squared three times; no branch, no table.

    Degree 6, least largest relative error (1e-8, with these digits) on [0, log(255)/8]; beyond, to x = 8, it stays below 1/255.
    """
    y = x * f4(-0.125)
    p = y * f4(0.00097717928) + f4(0.0079556680)
    p = p * y + f4(0.041489726)
    p = p * y + f4(0.16662389)
    p = p * y + f4(0.49999517)
    p = p * y + f4(0.99999981)
    p = p * y + ONE
    p = p * p
    p = p * p
    return p * p


@jit(fastmath=True)
def start_tile(s, width, height, tx, ty):
    """Pixel centres within the tile (rows 0, 1 of its state s) and transmittance (row 2): 1, or -1 outside the image."""
    for p in range(PIXELS):
        x, y = p % TILE_W, p // TILE_W
        s[p], s[PIXELS + p] = x + HALF, y + HALF
        s[2 * PIXELS + p] = ONE if tx * TILE_W + x < width and ty * TILE_H + y < height else -ONE


@jit(fastmath=True)
def tile_is_finished(s):
    """True when no pixel of the tile is still open (T > 0)."""
    top = f4(-1)
    for p in range(PIXELS):
        top = max(top, s[2 * PIXELS + p])
    return top <= ZERO


@jit(fastmath=True)
def composite_forward(start, stop, attr, entries, tile_range, entry_gaussian, entry_rows, rgb, depth, alpha, used,
                      alpha_min, max_alpha, t_min):
    """Composite the tiles start <= (image, tile) < stop.

    attr: (M, N, ATTR) of M images; tile_range: (M tiles + 1,) into entries; rgb: (M, H, W, 3), depth, alpha:
    (M, H, W); used: (M tiles,) how many entries were visited before the whole tile was finished; alpha_min, max_alpha,
    t_min: the constants of `projection.py` as float32 (arguments, because compiled code would keep old ones).
    """
    height, width = depth.shape[1], depth.shape[2]
    tiles_x, tiles_y = (width + TILE_W - 1) // TILE_W, (height + TILE_H - 1) // TILE_H
    s = np.empty(7 * PIXELS, np.float32)  # rows of PIXELS: x, y, T, r, g, b, z
    for t in range(start, stop):
        image, tile = t // (tiles_x * tiles_y), t % (tiles_x * tiles_y)
        ty, tx = tile // tiles_x, tile % tiles_x
        left, top = f4(tx * TILE_W), f4(ty * TILE_H)
        start_tile(s, width, height, tx, ty)
        s[3 * PIXELS:] = ZERO
        visited = 0
        for e in range(tile_range[t], tile_range[t + 1]):
            if visited % CHECK_EVERY == 0 and tile_is_finished(s):
                break
            visited += 1
            k = entries[e]
            i = entry_gaussian[k]
            mx, my = attr[image, i, 0] - left + attr[image, i, 10], attr[image, i, 1] - top + attr[image, i, 11]
            h, m, q, o = attr[image, i, 2], attr[image, i, 3], attr[image, i, 4], attr[image, i, 5]
            r, g, b, z = attr[image, i, 6], attr[image, i, 7], attr[image, i, 8], attr[image, i, 9]
            begin, end = index(entry_rows[k] // 256 * TILE_W), index(entry_rows[k] % 256 * TILE_W)
            for p in range(begin, end):
                dx, dy = s[p] - mx, s[ROW1 + p] - my
                slanted = dx + m * dy
                sigma = min(h * slanted * slanted + q * dy * dy, SIGMA_CAP)
                a = min(max_alpha, o * exp_neg(sigma))
                T = s[ROW2 + p]
                T_next = T * (ONE - a)
                hit = a >= alpha_min
                ok = hit & (T_next > t_min)
                w = T * a if ok else ZERO
                s[ROW3 + p] += w * r
                s[ROW4 + p] += w * g
                s[ROW5 + p] += w * b
                s[ROW6 + p] += w * z
                s[ROW2 + p] = T_next if ok else (-abs(T) if hit else T)
        used[t] = visited
        for y in range(ty * TILE_H, min((ty + 1) * TILE_H, height)):
            for x in range(tx * TILE_W, min((tx + 1) * TILE_W, width)):
                p = (y - ty * TILE_H) * TILE_W + x - tx * TILE_W
                rgb[image, y, x, 0] = s[3 * PIXELS + p]
                rgb[image, y, x, 1] = s[4 * PIXELS + p]
                rgb[image, y, x, 2] = s[5 * PIXELS + p]
                depth[image, y, x] = s[6 * PIXELS + p]
                alpha[image, y, x] = ONE - abs(s[2 * PIXELS + p])


@jit(fastmath=True)
def composite_backward(start, stop, attr, entries, tile_range, entry_gaussian, entry_rows, used, rgb, depth, alpha,
                       v_rgb, v_depth, v_alpha, target, background, grads, alpha_min, max_alpha, t_min):
    """Gradients of the tiles start <= (image, tile) < stop into grads (K, GRADS), one row per (Gaussian, tile).

    target: (M, H, W, 3), then background: (M, 3) and grads: (K, GRADS + CONTRIBUTIONS); or None, for which numba compiles a
    function without all that.
    """
    height, width = depth.shape[1], depth.shape[2]
    tiles_x, tiles_y = (width + TILE_W - 1) // TILE_W, (height + TILE_H - 1) // TILE_H
    s = np.empty((8 if target is None else 14) * PIXELS, np.float32)  # rows: x, y, T, v_r, v_g, v_b, v_z, R; S (3), C - C* (3)
    for t in range(start, stop):
        image, tile = t // (tiles_x * tiles_y), t % (tiles_x * tiles_y)
        ty, tx = tile // tiles_x, tile % tiles_x
        left, top = f4(tx * TILE_W), f4(ty * TILE_H)
        start_tile(s, width, height, tx, ty)
        s[3 * PIXELS:] = ZERO
        for y in range(ty * TILE_H, min((ty + 1) * TILE_H, height)):
            for x in range(tx * TILE_W, min((tx + 1) * TILE_W, width)):
                p = (y - ty * TILE_H) * TILE_W + x - tx * TILE_W
                vr, vg, vb = v_rgb[image, y, x, 0], v_rgb[image, y, x, 1], v_rgb[image, y, x, 2]
                vz = v_depth[image, y, x]
                s[3 * PIXELS + p], s[4 * PIXELS + p], s[5 * PIXELS + p], s[6 * PIXELS + p] = vr, vg, vb, vz
                s[7 * PIXELS + p] = (rgb[image, y, x, 0] * vr + rgb[image, y, x, 1] * vg + rgb[image, y, x, 2] * vb
                                     + depth[image, y, x] * vz - (ONE - alpha[image, y, x]) * v_alpha[image, y, x])
                if target is not None:
                    for c in range(3):
                        whole = rgb[image, y, x, c] + (ONE - alpha[image, y, x]) * background[image, c]
                        s[(8 + c) * PIXELS + p] = whole
                        s[(11 + c) * PIXELS + p] = whole - target[image, y, x, c]
        for e in range(tile_range[t], tile_range[t] + used[t]):
            k = entries[e]
            i = entry_gaussian[k]
            mx, my = attr[image, i, 0] - left + attr[image, i, 10], attr[image, i, 1] - top + attr[image, i, 11]
            h, m, q, o = attr[image, i, 2], attr[image, i, 3], attr[image, i, 4], attr[image, i, 5]
            r, g, b, z = attr[image, i, 6], attr[image, i, 7], attr[image, i, 8], attr[image, i, 9]
            begin, end = index(entry_rows[k] // 256 * TILE_W), index(entry_rows[k] % 256 * TILE_W)
            S0, Sx, Sy, Sxx, Sxy, Syy = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
            vr, vg, vb, vz, l1, l2 = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
            for p in range(begin, end):
                dx, dy = s[p] - mx, s[ROW1 + p] - my
                slanted = dx + m * dy
                sigma = min(h * slanted * slanted + q * dy * dy, SIGMA_CAP)
                a_free = o * exp_neg(sigma)
                a = min(max_alpha, a_free)
                T = s[ROW2 + p]
                T_next = T * (ONE - a)
                hit = a >= alpha_min
                ok = hit & (T_next > t_min)
                held = a if ok else ZERO
                w = T * held
                gr, gg, gb, gz = s[ROW3 + p], s[ROW4 + p], s[ROW5 + p], s[ROW6 + p]
                cv = r * gr + g * gg + b * gb + z * gz
                R = s[ROW7 + p] - w * cv
                behind = ONE / (ONE - a)
                d_alpha = T * cv - R * behind
                u = -a * d_alpha if ok & (a_free <= max_alpha) else ZERO
                s[ROW7 + p] = R
                s[ROW2 + p] = T_next if ok else (-abs(T) if hit else T)
                vr += w * gr
                vg += w * gg
                vb += w * gb
                vz += w * gz
                S0 += u
                Sx += u * dx
                Sy += u * dy
                Sxx += u * dx * dx
                Sxy += u * dx * dy
                Syy += u * dy * dy
                if target is not None:
                    f = held * behind
                    Br, Bg, Bb = s[ROW8 + p] - w * r, s[ROW9 + p] - w * g, s[ROW10 + p] - w * b
                    s[ROW8 + p], s[ROW9 + p], s[ROW10 + p] = Br, Bg, Bb
                    dr, dg, db = w * r - f * Br, w * g - f * Bg, w * b - f * Bb
                    er, eg, eb = s[ROW11 + p], s[ROW12 + p], s[ROW13 + p]
                    l1 += abs(er) - abs(er - dr) + abs(eg) - abs(eg - dg) + abs(eb) - abs(eb - db)
                    l2 += dr * (TWO * er - dr) + dg * (TWO * eg - dg) + db * (TWO * eb - db)
            grads[k, 0], grads[k, 1], grads[k, 2], grads[k, 3], grads[k, 4], grads[k, 5] = S0, Sx, Sy, Sxx, Sxy, Syy
            grads[k, 6], grads[k, 7], grads[k, 8], grads[k, 9] = vr, vg, vb, vz
            if target is not None:
                grads[k, 10], grads[k, 11] = l1, l2
        for e in range(tile_range[t] + used[t], tile_range[t + 1]):  # behind the finished tile
            for j in range(grads.shape[1]):
                grads[entries[e], j] = ZERO


@jit()
def sum_contributions(start, stop, grads, first, count, out):
    """out (M, N, 2): columns GRADS, GRADS + 1 of grads, summed over the tiles of Gaussian start <= m N + n < stop."""
    N = first.shape[1]
    for i in range(start, stop):
        m, n = i // N, i % N
        l1, l2 = 0.0, 0.0
        for k in range(first[m, n], first[m, n] + count[m, n]):
            l1 += grads[k, GRADS]
            l2 += grads[k, GRADS + 1]
        out[m, n, 0], out[m, n, 1] = l1, l2
