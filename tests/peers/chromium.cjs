// Launch options of the tests' browser.
"use strict";

module.exports = {
  path: process.env.CHROMIUM || "/usr/bin/chromium",
  // Chromium as root has no sandbox; the other flags stop its background requests.
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
  ],
};
