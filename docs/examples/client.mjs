// A client of `lit-align serve` in JavaScript: node client.mjs ws://127.0.0.1:8765 [frames] [token]
// Node 22 or newer, a browser, Deno or Bun; Node 20 with --experimental-websocket.
const [address = "ws://127.0.0.1:8765", frames = "100", token] = process.argv.slice(2);
const socket = new WebSocket(address);
socket.binaryType = "arraybuffer";
await new Promise((done, failed) => { socket.onopen = done; socket.onerror = () => failed(new Error("no server at " + address)); });

// One answer comes to every message, so asking is: send, then wait for the next message.
function ask(message) {
  return new Promise((done, failed) => {
    socket.onmessage = ({ data }) => {
      const answer = JSON.parse(data);
      if (answer.type === "error") failed(new Error(`${answer.code}: ${answer.message}`));
      else done(answer);
    };
    socket.onclose = ({ code, reason }) => failed(new Error(`the server has gone: ${code} ${reason}`));
    socket.send(message);
  });
}

// A frame: 12 bytes of header, lowest byte first, then the pixels, RGB row by row from the top left.
function frame(step, width, height, pixels) {
  const message = new Uint8Array(12 + pixels.length);
  const header = new DataView(message.buffer);
  header.setUint8(0, 1);               // a frame
  header.setUint8(1, 1);               // raw RGB; 2 is a JPEG, 3 a PNG
  header.setUint16(2, 0, true);        // numbers of a vector, which would stand before the pixels as float32
  header.setUint32(4, step, true);
  header.setUint16(8, width, true);
  header.setUint16(10, height, true);
  message.set(pixels, 12);
  return message;
}

const hello = { type: "hello", protocol: 1, seed: 0 };
const welcome = await ask(JSON.stringify(token ? { ...hello, token } : hello));
const size = welcome.image_size;
await ask(JSON.stringify({ type: "reset" }));
for (let step = 0; step < Number(frames); step++) {
  const pixels = new Uint8Array(3 * size * size).map((_, i) => (i + 7 * step) % 256);  // yours: what the game shows
  const { action, log_prob } = await ask(frame(step, size, size, pixels));
  console.log(JSON.stringify({ step, action, log_prob }));
}
socket.onclose = null;
socket.close();
