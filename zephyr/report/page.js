"use strict";
// What every part of the page uses. Loaded before pairs.js.
const zephyr = {
  // The text of a payload that `assets.compressed(name, ...)` stored.
  async unpack(name) {
    const element = document.querySelector(`script[data-payload="${CSS.escape(name)}"]`);
    if (!element) throw new Error(`this page holds no ${name}`);
    const packed = Uint8Array.from(atob(element.textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  },
};
window.zephyr = zephyr;
