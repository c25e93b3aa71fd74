// fetch() with bodies that are refused while they are being sent: each response must arrive.
// node refused_bodies.mjs URL URL_WITH_KEY
const [open, locked] = process.argv.slice(2);
const body = Buffer.alloc(10 << 20, " ");

async function check(method, url, status) {
  for (let time = 0; time < 20; time++) {
    const answer = await fetch(url, { method, body });
    const text = await answer.text();
    if (answer.status !== status || !JSON.parse(text).error.code) {
      throw new Error(`${method} ${url}: ${answer.status} ${text}`);
    }
  }
}

await check("POST", `${open}/v1/topics/a/messages`, 413);
await check("POST", `${open}/nothing`, 404);
await check("POST", `${open}/v1/stats`, 405);
await check("POST", `${locked}/v1/topics/a/messages`, 401);
