"""The numba engine, part 1: fused projection of every Gaussian into every view, and its derivative.

The same equations as `projection.py`, one Gaussian at a time in float64 registers, without temporaries:

    t = R mu + t_w      m = (fx x/z + cx, fy y/z + cy)      T = J R       cov = T Sigma T^T + eps2d I
    Sigma = M M^T       M = R_q diag(s)                     conic = cov^-1 = (A, B, C)

Derivatives, by hand (v_x stands for dL/dx; G = dL/d cov as a symmetric matrix):

    G      = -conic [[v_A, v_B/2], [v_B/2, v_C]] conic        (d X^-1 = -X^-1 dX X^-1)
    v_T    = 2 G T Sigma          v_Sigma = T^T G T           v_M = 2 v_Sigma M
    v_J    = v_T R^T              v_R    += J^T v_T + v_t mu^T

attr holds the row of ATTR numbers that compositing needs for a Gaussian in a view; an opacity of 0 marks it as culled.
With cov = [[a, b], [b, c]] the exponent is stored as a sum of squares, which keeps its precision for long thin splats:

    sigma = (A dx^2 + C dy^2) / 2 + B dx dy = h (dx + m dy)^2 + k dy^2       h = A/2, m = B/A = -b/c, k = 1/(2c)
"""

import math

import numpy as np

from gsgen_lib.raster.numba_setup import jit
from gsgen_lib.raster.projection import ALPHA_MIN, MAX_EXTENT

ATTR = 12  # x and y rounded down, h, m, k, opacity, r, g, b, z, fractions of x and y
BIG = 2.0**30


@jit()
def quat_rotation(w, x, y, z):
    """Rotation matrix entries, row by row, of a unit quaternion."""
    return (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y))


@jit()
def sigma_world(q, s):
    """Rotation entries, 1/|q| and the six numbers of Sigma = M M^T for one Gaussian."""
    q0, q1, q2, q3 = float(q[0]), float(q[1]), float(q[2]), float(q[3])
    inv = 1.0 / math.sqrt(max(q0 * q0 + q1 * q1 + q2 * q2 + q3 * q3, 1e-24))
    r = quat_rotation(q0 * inv, q1 * inv, q2 * inv, q3 * inv)
    a, b, c = float(s[0]) ** 2, float(s[1]) ** 2, float(s[2]) ** 2
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
def project_forward(start, stop, means, quats, scales, opacities, colors, viewmats, Ks, width, height, near, far,
                    eps2d, radius_clip, antialiased, attr, radii):
    """Fill attr (B, V, N, ATTR) and radii (B, V, N, 2) for the Gaussians start <= b N + n < stop."""
    N, V = means.shape[1], viewmats.shape[1]
    for i in range(start, stop):
        b, n = i // N, i % N
        m0, m1, m2 = float(means[b, n, 0]), float(means[b, n, 1]), float(means[b, n, 2])
        r, inv, xx, xy, xz, yy, yz, zz = sigma_world(quats[b, n], scales[b, n])
        for v in range(V):
            P, K, row = viewmats[b, v], Ks[b, v], attr[b, v, n]
            row[5] = 0.0
            radii[b, v, n, 0] = 0
            radii[b, v, n, 1] = 0
            x = P[0, 0] * m0 + P[0, 1] * m1 + P[0, 2] * m2 + P[0, 3]
            y = P[1, 0] * m0 + P[1, 1] * m1 + P[1, 2] * m2 + P[1, 3]
            z = P[2, 0] * m0 + P[2, 1] * m1 + P[2, 2] * m2 + P[2, 3]
            if not (near <= z <= far):
                continue
            fx, fy, cx, cy = float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])
            u, w = fx * x / z + cx, fy * y / z + cy
            tx, _ = clamped_ratio(x / z, cx, fx, width)
            ty, _ = clamped_ratio(y / z, cy, fy, height)
            ax, az, by, bz = fx / z, -fx * tx / z, fy / z, -fy * ty / z  # J = [[ax, 0, az], [0, by, bz]]
            t0, t1, t2 = ax * P[0, 0] + az * P[2, 0], ax * P[0, 1] + az * P[2, 1], ax * P[0, 2] + az * P[2, 2]
            s0, s1, s2 = by * P[1, 0] + bz * P[2, 0], by * P[1, 1] + bz * P[2, 1], by * P[1, 2] + bz * P[2, 2]
            e0, e1, e2 = xx * t0 + xy * t1 + xz * t2, xy * t0 + yy * t1 + yz * t2, xz * t0 + yz * t1 + zz * t2
            f0, f1, f2 = xx * s0 + xy * s1 + xz * s2, xy * s0 + yy * s1 + yz * s2, xz * s0 + yz * s1 + zz * s2
            cxx, cxy, cyy = t0 * e0 + t1 * e1 + t2 * e2, s0 * e0 + s1 * e1 + s2 * e2, s0 * f0 + s1 * f1 + s2 * f2
            a, c = cxx + eps2d, cyy + eps2d
            det = a * c - cxy * cxy
            if not det > 0 or not math.isfinite(det) or not math.isfinite(u) or not math.isfinite(w):
                continue
            opacity = float(opacities[b, n])
            if antialiased:
                opacity *= math.sqrt(max(cxx * cyy - cxy * cxy, 0.0) / det)
            if opacity < ALPHA_MIN:
                continue
            extent = min(MAX_EXTENT, math.sqrt(2 * math.log(255 * opacity)))
            rx, ry = min(math.ceil(extent * math.sqrt(a)), BIG), min(math.ceil(extent * math.sqrt(c)), BIG)
            if rx <= radius_clip and ry <= radius_clip:
                continue
            if u + rx <= 0 or u - rx >= width or w + ry <= 0 or w - ry >= height:
                continue
            radii[b, v, n, 0], radii[b, v, n, 1] = int(rx), int(ry)
            u_floor, w_floor = math.floor(u), math.floor(w)  # in two parts: float32 alone is too coarse at 1/255
            row[0], row[1], row[10], row[11] = u_floor, w_floor, u - u_floor, w - w_floor
            row[2], row[3], row[4], row[5] = 0.5 * c / det, -cxy / c, 0.5 / c, opacity
            rgb = colors[b, min(v, colors.shape[1] - 1), n]
            row[6], row[7], row[8], row[9] = rgb[0], rgb[1], rgb[2], z


@jit()
def project_backward(start, stop, means, quats, scales, opacities, viewmats, Ks, width, height, eps2d, antialiased,
                     attr, grads, first, count, v_means, v_quats, v_scales, v_opacities, v_colors, v_views,
                     grad_norm2d):
    """From the gradients per (Gaussian, tile) to those of the scene, for start <= b N + n < stop.

    grads: (K, G) rows written by compositing, see `numba_composite`; the rows first[b, v, n] ... + count[b, v, n]
    belong to Gaussian n in view v. v_views: (B, V, 3, 4), this chunk's share of the camera gradient.
    """
    N, V = means.shape[1], viewmats.shape[1]
    for i in range(start, stop):
        b, n = i // N, i % N
        m0, m1, m2 = float(means[b, n, 0]), float(means[b, n, 1]), float(means[b, n, 2])
        r, inv, xx, xy, xz, yy, yz, zz = sigma_world(quats[b, n], scales[b, n])
        gm0, gm1, gm2, gopacity = 0.0, 0.0, 0.0, 0.0
        gxx, gxy, gxz, gyy, gyz, gzz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0  # v_Sigma, symmetric
        for v in range(V):
            if count[b, v, n] == 0:
                continue
            # Sum over the tiles: moments of v_sigma, then v_rgb and v_z.
            S0, Sx, Sy, Sxx, Sxy, Syy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            vr, vg, vb, vz = 0.0, 0.0, 0.0, 0.0
            for k in range(first[b, v, n], first[b, v, n] + count[b, v, n]):
                g = grads[k]
                S0 += g[0]; Sx += g[1]; Sy += g[2]; Sxx += g[3]; Sxy += g[4]; Syy += g[5]
                vr += g[6]; vg += g[7]; vb += g[8]; vz += g[9]
            vc = v_colors[b, min(v, v_colors.shape[1] - 1), n]
            vc[0] += vr; vc[1] += vg; vc[2] += vb
            P, K = viewmats[b, v], Ks[b, v]
            # repeat the forward projection
            x = P[0, 0] * m0 + P[0, 1] * m1 + P[0, 2] * m2 + P[0, 3]
            y = P[1, 0] * m0 + P[1, 1] * m1 + P[1, 2] * m2 + P[1, 3]
            z = P[2, 0] * m0 + P[2, 1] * m1 + P[2, 2] * m2 + P[2, 3]
            fx, fy, cx, cy = float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])
            tx, x_inside = clamped_ratio(x / z, cx, fx, width)
            ty, y_inside = clamped_ratio(y / z, cy, fy, height)
            ax, az, by, bz = fx / z, -fx * tx / z, fy / z, -fy * ty / z
            t0, t1, t2 = ax * P[0, 0] + az * P[2, 0], ax * P[0, 1] + az * P[2, 1], ax * P[0, 2] + az * P[2, 2]
            s0, s1, s2 = by * P[1, 0] + bz * P[2, 0], by * P[1, 1] + bz * P[2, 1], by * P[1, 2] + bz * P[2, 2]
            e0, e1, e2 = xx * t0 + xy * t1 + xz * t2, xy * t0 + yy * t1 + yz * t2, xz * t0 + yz * t1 + zz * t2
            f0, f1, f2 = xx * s0 + xy * s1 + xz * s2, xy * s0 + yy * s1 + yz * s2, xz * s0 + yz * s1 + zz * s2
            cxx, cxy, cyy = t0 * e0 + t1 * e1 + t2 * e2, s0 * e0 + s1 * e1 + s2 * e2, s0 * f0 + s1 * f1 + s2 * f2
            det = (cxx + eps2d) * (cyy + eps2d) - cxy * cxy
            A, B, C, opacity = (cyy + eps2d) / det, -cxy / det, (cxx + eps2d) / det, float(attr[b, v, n, 5])
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
                v_opacity *= opacity / float(opacities[b, n])
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
            v_ax = vt0 * P[0, 0] + vt1 * P[0, 1] + vt2 * P[0, 2]
            v_az = vt0 * P[2, 0] + vt1 * P[2, 1] + vt2 * P[2, 2]
            v_by = vs0 * P[1, 0] + vs1 * P[1, 1] + vs2 * P[1, 2]
            v_bz = vs0 * P[2, 0] + vs1 * P[2, 1] + vs2 * P[2, 2]
            # camera-space mean: through mean2d, depth and J
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
            gm0 += P[0, 0] * v_x + P[1, 0] * v_y + P[2, 0] * v_z
            gm1 += P[0, 1] * v_x + P[1, 1] * v_y + P[2, 1] * v_z
            gm2 += P[0, 2] * v_x + P[1, 2] * v_y + P[2, 2] * v_z
            Q = v_views[b, v]
            Q[0, 0] += v_x * m0 + ax * vt0; Q[0, 1] += v_x * m1 + ax * vt1; Q[0, 2] += v_x * m2 + ax * vt2
            Q[1, 0] += v_y * m0 + by * vs0; Q[1, 1] += v_y * m1 + by * vs1; Q[1, 2] += v_y * m2 + by * vs2
            Q[2, 0] += v_z * m0 + az * vt0 + bz * vs0
            Q[2, 1] += v_z * m1 + az * vt1 + bz * vs1
            Q[2, 2] += v_z * m2 + az * vt2 + bz * vs2
            Q[0, 3] += v_x; Q[1, 3] += v_y; Q[2, 3] += v_z
        v_means[b, n, 0], v_means[b, n, 1], v_means[b, n, 2], v_opacities[b, n] = gm0, gm1, gm2, gopacity
        covariance_backward(r, inv, quats[b, n], scales[b, n], gxx, gxy, gxz, gyy, gyz, gzz, v_quats[b, n], v_scales[b, n])


@jit()
def covariance_backward(r, inv, q, s, gxx, gxy, gxz, gyy, gyz, gzz, v_q, v_s):
    """v_Sigma (symmetric) -> v_quat (through the normalisation) and v_scale, with Sigma = M M^T, M = R diag(s)."""
    w, x, y, z = q[0] * inv, q[1] * inv, q[2] * inv, q[3] * inv
    vR = np.empty((3, 3))
    for j in range(3):
        c0, c1, c2, sj = r[j], r[3 + j], r[6 + j], float(s[j])
        d0, d1, d2 = gxx * c0 + gxy * c1 + gxz * c2, gxy * c0 + gyy * c1 + gyz * c2, gxz * c0 + gyz * c1 + gzz * c2
        v_s[j] = 2 * sj * (c0 * d0 + c1 * d1 + c2 * d2)  # v_M = 2 v_Sigma M; v_s = column of R . v_M
        vR[0, j], vR[1, j], vR[2, j] = 2 * sj * sj * d0, 2 * sj * sj * d1, 2 * sj * sj * d2
    vw = 2 * (x * (vR[2, 1] - vR[1, 2]) + y * (vR[0, 2] - vR[2, 0]) + z * (vR[1, 0] - vR[0, 1]))
    vx = 2 * (w * (vR[2, 1] - vR[1, 2]) + y * (vR[0, 1] + vR[1, 0]) + z * (vR[0, 2] + vR[2, 0])
              - 2 * x * (vR[1, 1] + vR[2, 2]))
    vy = 2 * (w * (vR[0, 2] - vR[2, 0]) + x * (vR[0, 1] + vR[1, 0]) + z * (vR[1, 2] + vR[2, 1])
              - 2 * y * (vR[0, 0] + vR[2, 2]))
    vz = 2 * (w * (vR[1, 0] - vR[0, 1]) + x * (vR[0, 2] + vR[2, 0]) + y * (vR[1, 2] + vR[2, 1])
              - 2 * z * (vR[0, 0] + vR[1, 1]))
    along = w * vw + x * vx + y * vy + z * vz  # changing |q| changes nothing
    v_q[0], v_q[1] = inv * (vw - along * w), inv * (vx - along * x)
    v_q[2], v_q[3] = inv * (vy - along * y), inv * (vz - along * z)
