"""The numba engine, part 1: fused projection of every Gaussian into every view, and its derivative.

The same equations as `projection.py`, one Gaussian at a time without temporaries, in float64 registers: f8(x),
since in numba float(x) of a float32 stays one.

    (x, y, z) = R mu + t    mean2d = (fx x/z + cx, fy y/z + cy)    T = J R    cov = T Sigma T^T + eps2d I
    Sigma = M M^T           M = R_q diag(s)                        conic = cov^-1 = (A, B, C)

Derivatives, by hand (v_x stands for dL/dx; G = dL/d cov as a symmetric matrix):

    G      = -conic [[v_A, v_B/2], [v_B/2, v_C]] conic        (d X^-1 = -X^-1 dX X^-1)
    v_T    = 2 G T Sigma          v_Sigma = T^T G T           v_M = 2 v_Sigma M
    v_J    = v_T R^T              v_R    += J^T v_T + v_xyz mu^T

attr holds the row of ATTR numbers that compositing needs for a Gaussian in a view; an opacity of 0 marks it as culled.
With cov = [[a, b], [b, c]] the exponent is stored as a sum of squares, which keeps its precision for long thin splats:

    sigma = (A dx^2 + C dy^2) / 2 + B dx dy = h (dx + m dy)^2 + k dy^2       h = A/2, m = B/A = -b/c, k = 1/(2c)
"""

import math

from numpy import float64 as f8

from gsgen_lib.raster.numba_setup import jit

ATTR = 12  # x and y rounded down, h, m, k, opacity, r, g, b, z, fractions of x and y
BIG = 2.0**30


@jit()
def quat_rotation(w, x, y, z):
    """Rotation matrix entries, row by row, of a unit quaternion."""
    return (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y))


@jit()
def sigma_world(quats, scales, i, n):
    """Rotation entries, 1/|q| and the six numbers of Sigma = M M^T of Gaussian n in scene i."""
    q0, q1, q2, q3 = f8(quats[i, n, 0]), f8(quats[i, n, 1]), f8(quats[i, n, 2]), f8(quats[i, n, 3])
    inv = 1.0 / math.sqrt(max(q0 * q0 + q1 * q1 + q2 * q2 + q3 * q3, 1e-24))
    r = quat_rotation(q0 * inv, q1 * inv, q2 * inv, q3 * inv)
    a, b, c = f8(scales[i, n, 0]) ** 2, f8(scales[i, n, 1]) ** 2, f8(scales[i, n, 2]) ** 2
    return (r, inv, r[0] * r[0] * a + r[1] * r[1] * b + r[2] * r[2] * c,  # xx
            r[0] * r[3] * a + r[1] * r[4] * b + r[2] * r[5] * c,  # xy
            r[0] * r[6] * a + r[1] * r[7] * b + r[2] * r[8] * c,  # xz
            r[3] * r[3] * a + r[4] * r[4] * b + r[5] * r[5] * c,  # yy
            r[3] * r[6] * a + r[4] * r[7] * b + r[5] * r[8] * c,  # yz
            r[6] * r[6] * a + r[7] * r[7] * b + r[8] * r[8] * c)  # zz


@jit()
def clamped_ratio(x_over_z, c, f, size):
    """x/z clamped to the widened field of view (used in J only), and whether it was inside."""
    margin = 0.15 * size / f
    low, high = -(c / f + margin), (size - c) / f + margin
    return min(max(x_over_z, low), high), low <= x_over_z <= high


@jit()
def camera(viewmats, Ks, b, v):
    """The 12 numbers of a view matrix, row by row, and fx, fy, cx, cy."""
    return (f8(viewmats[b, v, 0, 0]), f8(viewmats[b, v, 0, 1]), f8(viewmats[b, v, 0, 2]), f8(viewmats[b, v, 0, 3]),
            f8(viewmats[b, v, 1, 0]), f8(viewmats[b, v, 1, 1]), f8(viewmats[b, v, 1, 2]), f8(viewmats[b, v, 1, 3]),
            f8(viewmats[b, v, 2, 0]), f8(viewmats[b, v, 2, 1]), f8(viewmats[b, v, 2, 2]), f8(viewmats[b, v, 2, 3]),
            f8(Ks[b, v, 0, 0]), f8(Ks[b, v, 1, 1]), f8(Ks[b, v, 0, 2]), f8(Ks[b, v, 1, 2]))


@jit()
def linearise(P, x, y, z, xx, xy, xz, yy, yz, zz, width, height):
    """J = [[ax, 0, az], [0, by, bz]], T = J R with rows t and s, the rows of T Sigma (e and f), cov without eps2d."""
    fx, fy, cx, cy = P[12], P[13], P[14], P[15]
    tx, x_inside = clamped_ratio(x / z, cx, fx, width)
    ty, y_inside = clamped_ratio(y / z, cy, fy, height)
    ax, az, by, bz = fx / z, -fx * tx / z, fy / z, -fy * ty / z
    t0, t1, t2 = ax * P[0] + az * P[8], ax * P[1] + az * P[9], ax * P[2] + az * P[10]
    s0, s1, s2 = by * P[4] + bz * P[8], by * P[5] + bz * P[9], by * P[6] + bz * P[10]
    e0, e1, e2 = xx * t0 + xy * t1 + xz * t2, xy * t0 + yy * t1 + yz * t2, xz * t0 + yz * t1 + zz * t2
    f0, f1, f2 = xx * s0 + xy * s1 + xz * s2, xy * s0 + yy * s1 + yz * s2, xz * s0 + yz * s1 + zz * s2
    cxx, cxy, cyy = t0 * e0 + t1 * e1 + t2 * e2, s0 * e0 + s1 * e1 + s2 * e2, s0 * f0 + s1 * f1 + s2 * f2
    return x_inside, y_inside, ax, az, by, bz, t0, t1, t2, s0, s1, s2, e0, e1, e2, f0, f1, f2, cxx, cxy, cyy


@jit()
def project_forward(start, stop, means, quats, scales, opacities, colors, viewmats, Ks, width, height, near, far,
                    eps2d, radius_clip, alpha_min, max_extent, antialiased, attr, radii):
    """Fill attr (B, V, N, ATTR) and radii (B, V, N, 2) for the Gaussians start <= b N + n < stop."""
    N, V, color_views = means.shape[1], viewmats.shape[1], colors.shape[1]
    for i in range(start, stop):
        b, n = i // N, i % N
        m0, m1, m2 = f8(means[b, n, 0]), f8(means[b, n, 1]), f8(means[b, n, 2])
        _, _, xx, xy, xz, yy, yz, zz = sigma_world(quats, scales, b, n)
        for v in range(V):
            attr[b, v, n, 5] = 0.0
            radii[b, v, n, 0] = 0
            radii[b, v, n, 1] = 0
            P = camera(viewmats, Ks, b, v)
            z = P[8] * m0 + P[9] * m1 + P[10] * m2 + P[11]
            if not (near <= z <= far):
                continue
            x = P[0] * m0 + P[1] * m1 + P[2] * m2 + P[3]
            y = P[4] * m0 + P[5] * m1 + P[6] * m2 + P[7]
            u, w = P[12] * x / z + P[14], P[13] * y / z + P[15]
            _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, cxx, cxy, cyy = linearise(
                P, x, y, z, xx, xy, xz, yy, yz, zz, width, height)
            a, c = cxx + eps2d, cyy + eps2d
            det = a * c - cxy * cxy
            if not det > 0 or not math.isfinite(det) or not math.isfinite(u) or not math.isfinite(w):
                continue
            opacity = f8(opacities[b, n])
            if antialiased:
                opacity *= math.sqrt(max(cxx * cyy - cxy * cxy, 0.0) / det)
            if opacity < alpha_min:
                continue
            extent = min(max_extent, math.sqrt(2 * math.log(opacity / alpha_min)))
            rx, ry = min(math.ceil(extent * math.sqrt(a)), BIG), min(math.ceil(extent * math.sqrt(c)), BIG)
            if rx <= radius_clip and ry <= radius_clip:
                continue
            if u + rx <= 0 or u - rx >= width or w + ry <= 0 or w - ry >= height:
                continue
            radii[b, v, n, 0], radii[b, v, n, 1] = int(rx), int(ry)
            u_floor, w_floor, cv = math.floor(u), math.floor(w), min(v, color_views - 1)
            attr[b, v, n, 0], attr[b, v, n, 1] = u_floor, w_floor  # in two parts: one float32 is too coarse
            attr[b, v, n, 10], attr[b, v, n, 11] = u - u_floor, w - w_floor
            attr[b, v, n, 2], attr[b, v, n, 3], attr[b, v, n, 4] = 0.5 * c / det, -cxy / c, 0.5 / c
            attr[b, v, n, 5], attr[b, v, n, 9] = opacity, z
            for k in range(3):
                attr[b, v, n, 6 + k] = colors[b, cv, n, k]


@jit()
def project_backward(start, stop, means, quats, scales, opacities, viewmats, Ks, width, height, eps2d, antialiased,
                     attr, grads, first, count, v_means, v_quats, v_scales, v_opacities, v_colors, v_views, chunk,
                     grad_norm2d):
    """From the gradients per (Gaussian, tile) to those of the scene, for start <= b N + n < stop.

    grads: (K, G) rows written by compositing, see `numba_composite`; the rows first[b, v, n] ... + count[b, v, n]
    belong to Gaussian n in view v. v_views: (chunks, B, V, 3, 4); this call adds to v_views[chunk].
    """
    N, V, color_views = means.shape[1], viewmats.shape[1], v_colors.shape[1]
    for i in range(start, stop):
        b, n = i // N, i % N
        m0, m1, m2 = f8(means[b, n, 0]), f8(means[b, n, 1]), f8(means[b, n, 2])
        r, inv, xx, xy, xz, yy, yz, zz = sigma_world(quats, scales, b, n)
        gm0, gm1, gm2, gopacity = 0.0, 0.0, 0.0, 0.0
        gxx, gxy, gxz, gyy, gyz, gzz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0  # v_Sigma, symmetric
        for v in range(V):
            if count[b, v, n] == 0:
                continue
            # Sum over the tiles: moments of v_sigma, then v_rgb and v_z.
            S0, Sx, Sy, Sxx, Sxy, Syy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            vr, vg, vb, vz = 0.0, 0.0, 0.0, 0.0
            for k in range(first[b, v, n], first[b, v, n] + count[b, v, n]):
                S0 += grads[k, 0]
                Sx += grads[k, 1]
                Sy += grads[k, 2]
                Sxx += grads[k, 3]
                Sxy += grads[k, 4]
                Syy += grads[k, 5]
                vr += grads[k, 6]
                vg += grads[k, 7]
                vb += grads[k, 8]
                vz += grads[k, 9]
            cv = min(v, color_views - 1)
            v_colors[b, cv, n, 0] += vr
            v_colors[b, cv, n, 1] += vg
            v_colors[b, cv, n, 2] += vb
            # repeat the forward projection
            P = camera(viewmats, Ks, b, v)
            x = P[0] * m0 + P[1] * m1 + P[2] * m2 + P[3]
            y = P[4] * m0 + P[5] * m1 + P[6] * m2 + P[7]
            z = P[8] * m0 + P[9] * m1 + P[10] * m2 + P[11]
            (x_inside, y_inside, ax, az, by, bz, t0, t1, t2, s0, s1, s2, e0, e1, e2, f0, f1, f2, cxx, cxy, cyy
             ) = linearise(P, x, y, z, xx, xy, xz, yy, yz, zz, width, height)
            det = (cxx + eps2d) * (cyy + eps2d) - cxy * cxy
            A, B, C, opacity = (cyy + eps2d) / det, -cxy / det, (cxx + eps2d) / det, f8(attr[b, v, n, 5])
            v_u, v_w = -(A * Sx + B * Sy), -(B * Sx + C * Sy)  # d sigma / d mean2d = -conic (dx, dy)
            grad_norm2d[b, v, n] = math.sqrt(v_u * v_u + v_w * v_w)
            v_opacity = -S0 / opacity  # alpha = o e^-sigma, so v_o = -sum v_sigma / o
            # conic -> cov
            q00, q01, q11 = 0.5 * Sxx, 0.5 * Sxy, 0.5 * Syy  # [[v_A, v_B/2], [v_B/2, v_C]]
            h00, h01 = A * q00 + B * q01, A * q01 + B * q11
            h10, h11 = B * q00 + C * q01, B * q01 + C * q11
            G00, G01, G11 = -(h00 * A + h01 * B), -(h00 * B + h01 * C), -(h10 * B + h11 * C)
            if antialiased:  # opacity = o sqrt(det0 / det): a factor for o, and a gradient for cov
                det0 = cxx * cyy - cxy * cxy
                half = 0.5 * v_opacity * opacity  # d log(comp) = (cov0^-1 - cov^-1) : dcov / 2
                G00 += half * (cyy / det0 - A)
                G01 += half * (-cxy / det0 - B)
                G11 += half * (cxx / det0 - C)
                v_opacity *= opacity / f8(opacities[b, n])
            gopacity += v_opacity
            # cov = T Sigma T^T: v_Sigma = T^T G T, v_T = 2 G T Sigma
            p0, p1, p2 = G00 * t0 + G01 * s0, G00 * t1 + G01 * s1, G00 * t2 + G01 * s2  # rows of G T
            o0, o1, o2 = G01 * t0 + G11 * s0, G01 * t1 + G11 * s1, G01 * t2 + G11 * s2
            gxx += t0 * p0 + s0 * o0
            gxy += t0 * p1 + s0 * o1
            gxz += t0 * p2 + s0 * o2
            gyy += t1 * p1 + s1 * o1
            gyz += t1 * p2 + s1 * o2
            gzz += t2 * p2 + s2 * o2
            vt0, vt1, vt2 = 2 * (G00 * e0 + G01 * f0), 2 * (G00 * e1 + G01 * f1), 2 * (G00 * e2 + G01 * f2)
            vs0, vs1, vs2 = 2 * (G01 * e0 + G11 * f0), 2 * (G01 * e1 + G11 * f1), 2 * (G01 * e2 + G11 * f2)
            v_ax = vt0 * P[0] + vt1 * P[1] + vt2 * P[2]
            v_az = vt0 * P[8] + vt1 * P[9] + vt2 * P[10]
            v_by = vs0 * P[4] + vs1 * P[5] + vs2 * P[6]
            v_bz = vs0 * P[8] + vs1 * P[9] + vs2 * P[10]
            # camera-space mean: through mean2d, depth and J
            fx, fy = P[12], P[13]
            v_x, v_y = v_u * fx / z, v_w * fy / z
            v_z = vz - (v_u * fx * x + v_w * fy * y) / (z * z) - (v_ax * ax + v_by * by) / z
            if x_inside:  # az = -fx x / z^2
                v_x -= v_az * fx / (z * z)
                v_z -= 2 * v_az * az / z
            else:  # az = -fx ratio / z
                v_z -= v_az * az / z
            if y_inside:
                v_y -= v_bz * fy / (z * z)
                v_z -= 2 * v_bz * bz / z
            else:
                v_z -= v_bz * bz / z
            gm0 += P[0] * v_x + P[4] * v_y + P[8] * v_z
            gm1 += P[1] * v_x + P[5] * v_y + P[9] * v_z
            gm2 += P[2] * v_x + P[6] * v_y + P[10] * v_z
            v_views[chunk, b, v, 0, 0] += v_x * m0 + ax * vt0
            v_views[chunk, b, v, 0, 1] += v_x * m1 + ax * vt1
            v_views[chunk, b, v, 0, 2] += v_x * m2 + ax * vt2
            v_views[chunk, b, v, 0, 3] += v_x
            v_views[chunk, b, v, 1, 0] += v_y * m0 + by * vs0
            v_views[chunk, b, v, 1, 1] += v_y * m1 + by * vs1
            v_views[chunk, b, v, 1, 2] += v_y * m2 + by * vs2
            v_views[chunk, b, v, 1, 3] += v_y
            v_views[chunk, b, v, 2, 0] += v_z * m0 + az * vt0 + bz * vs0
            v_views[chunk, b, v, 2, 1] += v_z * m1 + az * vt1 + bz * vs1
            v_views[chunk, b, v, 2, 2] += v_z * m2 + az * vt2 + bz * vs2
            v_views[chunk, b, v, 2, 3] += v_z
        v_means[b, n, 0], v_means[b, n, 1], v_means[b, n, 2], v_opacities[b, n] = gm0, gm1, gm2, gopacity

        # Sigma = M M^T with M = R diag(s): v_M = 2 v_Sigma M; column j of v_R is 2 s_j^2 v_Sigma R_j
        s0, s1, s2 = f8(scales[b, n, 0]), f8(scales[b, n, 1]), f8(scales[b, n, 2])
        d00 = gxx * r[0] + gxy * r[3] + gxz * r[6]
        d10 = gxy * r[0] + gyy * r[3] + gyz * r[6]
        d20 = gxz * r[0] + gyz * r[3] + gzz * r[6]
        d01 = gxx * r[1] + gxy * r[4] + gxz * r[7]
        d11 = gxy * r[1] + gyy * r[4] + gyz * r[7]
        d21 = gxz * r[1] + gyz * r[4] + gzz * r[7]
        d02 = gxx * r[2] + gxy * r[5] + gxz * r[8]
        d12 = gxy * r[2] + gyy * r[5] + gyz * r[8]
        d22 = gxz * r[2] + gyz * r[5] + gzz * r[8]
        v_scales[b, n, 0] = 2 * s0 * (r[0] * d00 + r[3] * d10 + r[6] * d20)
        v_scales[b, n, 1] = 2 * s1 * (r[1] * d01 + r[4] * d11 + r[7] * d21)
        v_scales[b, n, 2] = 2 * s2 * (r[2] * d02 + r[5] * d12 + r[8] * d22)
        k0, k1, k2 = 2 * s0 * s0, 2 * s1 * s1, 2 * s2 * s2
        v_quats[b, n, 0], v_quats[b, n, 1], v_quats[b, n, 2], v_quats[b, n, 3] = rotation_backward(
            quats[b, n, 0] * inv, quats[b, n, 1] * inv, quats[b, n, 2] * inv, quats[b, n, 3] * inv, inv,
            k0 * d00, k1 * d01, k2 * d02, k0 * d10, k1 * d11, k2 * d12, k0 * d20, k1 * d21, k2 * d22)


@jit()
def rotation_backward(w, x, y, z, inv, R00, R01, R02, R10, R11, R12, R20, R21, R22):
    """Gradient of the nine rotation entries -> gradient of the quaternion before its normalisation.

    w, x, y, z: the unit quaternion; inv: one over the length of the one given.
    """
    vw = 2 * (x * (R21 - R12) + y * (R02 - R20) + z * (R10 - R01))
    vx = 2 * (w * (R21 - R12) + y * (R01 + R10) + z * (R02 + R20) - 2 * x * (R11 + R22))
    vy = 2 * (w * (R02 - R20) + x * (R01 + R10) + z * (R12 + R21) - 2 * y * (R00 + R22))
    vz = 2 * (w * (R10 - R01) + x * (R02 + R20) + y * (R12 + R21) - 2 * z * (R00 + R11))
    along = w * vw + x * vx + y * vy + z * vz  # changing the length changes nothing
    return inv * (vw - along * w), inv * (vx - along * x), inv * (vy - along * y), inv * (vz - along * z)
