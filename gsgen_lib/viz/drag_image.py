"""The picture of `OrbitViewer` that the mouse can turn: an anywidget with 40 lines of JavaScript.

Dragging changes azimuth and elevation (half a degree per pixel), the wheel changes the zoom, the
arrow keys turn by five degrees. The browser sends one change at a time: Jupyter's widget model
holds further changes back, merged into the latest, until the kernel is idle again. So a slow
kernel draws fewer frames, but never an old one after a new one, and always the last.

Needs the optional package anywidget; `OrbitViewer` uses a plain image and sliders without it.
"""

from __future__ import annotations

import anywidget
import traitlets

JAVASCRIPT = """
function render({ model, el }) {
  const image = document.createElement("img");
  image.alt = model.get("alt");
  image.width = model.get("width");
  image.draggable = false;
  image.tabIndex = 0;
  image.style.cssText = "cursor: grab; touch-action: none; user-select: none; display: block";
  const draw = () => {
    const url = URL.createObjectURL(new Blob([model.get("value")], { type: "image/png" }));
    image.onload = () => URL.revokeObjectURL(url);
    image.src = url;
  };
  const turn = (right, down) => {
    const azimuth = model.get("azimuth") - right;
    model.set("azimuth", ((azimuth + 180) % 360 + 360) % 360 - 180);
    model.set("elevation", Math.max(-90, Math.min(90, model.get("elevation") + down)));
    model.save_changes();
  };
  let last = null;
  image.addEventListener("pointerdown", (event) => {
    last = event;
    image.setPointerCapture(event.pointerId);
  });
  image.addEventListener("pointermove", (event) => {
    if (last === null) return;
    turn(0.5 * (event.clientX - last.clientX), 0.5 * (event.clientY - last.clientY));
    last = event;
  });
  image.addEventListener("pointerup", () => { last = null; });
  image.addEventListener("pointercancel", () => { last = null; });
  image.addEventListener("wheel", (event) => {
    event.preventDefault();
    const zoom = model.get("zoom") * Math.exp(-0.001 * event.deltaY);
    model.set("zoom", Math.max(50, Math.min(250, zoom)));
    model.save_changes();
  }, { passive: false });
  image.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, -5], ArrowDown: [0, 5] }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    turn(...step);
  });
  model.on("change:value", draw);
  draw();
  el.appendChild(image);
}
export default { render };
"""


class DragImage(anywidget.AnyWidget):
    """A PNG (`value`) with azimuth, elevation (degrees) and zoom (percent), changed by mouse and keys.

    >>> DragImage(azimuth=30.0).azimuth
    30.0
    """

    _esm = JAVASCRIPT
    value = traitlets.Bytes(b"").tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)
    width = traitlets.Int(320).tag(sync=True)
    azimuth = traitlets.Float(0.0).tag(sync=True)
    elevation = traitlets.Float(0.0).tag(sync=True)
    zoom = traitlets.Float(100.0).tag(sync=True)
