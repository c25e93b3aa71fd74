// How the tests start their browser.
"use strict";

module.exports = {
  path: process.env.CHROMIUM || "/usr/bin/chromium",
  // As root a browser has no sandbox; the rest keeps it from calling home.
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
  ],
};
