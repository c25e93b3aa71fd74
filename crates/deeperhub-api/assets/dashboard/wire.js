// WebSockets whose text is shown as it was sent.

/**
 * Returns a class of WebSockets for the client library. `onText` gets "sent" or "received" and each
 * text, `onSocket` each new socket.
 */
export function tappedWebSocket({ onText, onSocket }) {
  return class TappedWebSocket extends WebSocket {
    constructor(url, protocols) {
      super(url, protocols);
      onSocket(this);
      this.addEventListener("message", (event) => {
        if (typeof event.data === "string") onText("received", event.data);
      });
    }

    send(data) {
      if (typeof data === "string") onText("sent", data);
      super.send(data);
    }
  };
}
