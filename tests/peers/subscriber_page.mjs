// A subscriber on a web page in headless Chromium: subscriber_page.mjs URL TOPIC COUNT NAME PAGE.
// Behaves like subscriber.py; PAGE is the URL of a page with an allowed origin.

import { chromium } from "playwright-core";

const [url, topic, count, name, address] = process.argv.slice(2);
// Chromium as root has no sandbox; the other flags stop its background requests.
const args = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args });
try {
    const page = await browser.newPage();
    page.on("console", (message) => console.log(message.text()));
    await page.goto(address);
    await page.evaluate(
        ([url, topic, count, name]) =>
            new Promise((resolve, reject) => {
                const hub = new WebSocket(url);
                const send = (type, data) => hub.send(JSON.stringify({ type, data }));
                let deliveries = 0;
                hub.onopen = () => send("subscribe", { topic });
                hub.onclose = (close) => reject(new Error(`closed with ${close.code}`));
                hub.onmessage = ({ data }) => {
                    const { type } = JSON.parse(data);
                    if (type === "subscribed") {
                        console.log(`subscribed ${hub.extensions || "none"}`);
                    }
                    if (type !== "message") {
                        return;
                    }
                    console.log(data);
                    deliveries += 1;
                    if (deliveries === 1) {
                        for (const turn of [1, 2]) {
                            const rows = `${name} says it again; é `.repeat(200);
                            send("publish", { topic, message: { from: name, turn, rows } });
                        }
                    }
                    if (deliveries === count) {
                        resolve();
                    }
                };
            }),
        [url, topic, Number(count), name],
    );
} finally {
    await browser.close();
}
