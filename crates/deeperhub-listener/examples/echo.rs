//! A WebSocket server that answers every message with itself.

use deeperhub_listener::{Context, ListenOn, Listener, Message, Session, StartError, accept_all};

struct Echo;

impl Session for Echo {
    type WorkerState = ();
    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, ()>) {
        cx.reply_message(message);
    }
}

pub(crate) fn serve(on: impl Into<ListenOn>) -> Result<Listener, StartError> {
    Listener::builder(accept_all(|| Echo)).bind(on)
}

fn main() -> Result<(), StartError> {
    serve(([127, 0, 0, 1], 9001))?.wait();
    Ok(())
}
