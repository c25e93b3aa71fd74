/*! deeperhub 0.1.0, MIT OR Apache-2.0, generated from clients/typescript/src */
/** The state of the connection. */
export type HubState = "connecting" | "open" | "waiting" | "closed";
export interface HubStateEvent {
    readonly state: HubState;
    /** With `waiting`: the time of the next attempt, in milliseconds since 1970, if it is known. */
    readonly until?: number;
    /** Why the last connection ended. */
    readonly reason?: string;
}
/** The state of a subscription. */
export type SubscriptionState = "subscribing" | "live" | "recovering" | "ended";
export interface SubscriptionStateEvent {
    readonly state: SubscriptionState;
    /** With `live`, after an interruption: whether no message was missed. */
    readonly recovered?: boolean;
    /** Why messages were missed, or why the subscription ended. */
    readonly reason?: string;
}
/** The place of a message in its topic. */
export interface Position {
    readonly epoch: string;
    readonly offset: number;
    readonly time: number;
}
/** A message of a topic. The keys of its position are absent on topics without history. */
export interface Message<T = unknown> extends Partial<Position> {
    readonly topic: string;
    readonly message: T;
    /** The client that published it; absent if a backend did. */
    readonly from?: string;
}
/** Messages that will not come. `from` and `to` are offsets, if they are known. */
export interface Gap {
    readonly topic: string;
    readonly reason: string;
    readonly from?: number;
    readonly to?: number;
}
/** The answer to a publish. It has the keys of a position on topics with history. */
export interface Published extends Partial<Position> {
    readonly topic: string;
    /** Number of subscriptions that the message matched. */
    readonly subscribers: number;
    /** Present if the message did not reach other nodes of the cluster. */
    readonly cluster?: "unavailable" | "too_large";
}
/** Kept messages of a topic. */
export interface History<T = unknown> {
    readonly topic: string;
    readonly messages: readonly Message<T>[];
    /** Epoch and offset of the newest message. */
    readonly epoch?: string;
    readonly offset?: number;
    readonly time?: number;
    /** `from` of the next request, if there are more messages. */
    readonly next?: number;
}
/** A member of a topic with presence. */
export interface Member {
    readonly client_id: string;
    readonly user?: string | null;
    readonly info?: unknown;
}
/** The members of a topic (`state`), or who came and left since the event before. */
export interface Presence {
    readonly topic: string;
    readonly version: number;
    readonly clients: number;
    readonly users: number;
    readonly state?: readonly Member[];
    readonly joins?: readonly Member[];
    readonly leaves?: readonly Member[];
}
/** A message that a backend sent to this client, to its user or to every client. */
export interface DirectMessage {
    readonly type: string;
    readonly data?: unknown;
    readonly [key: string]: unknown;
}
/** An error of the server or of the client. */
export interface HubError extends Error {
    readonly code: string;
    readonly retryAfterMs?: number;
}
export interface HubErrorConstructor {
    new (code: string, message: string, options?: {
        retryAfterMs?: number;
        cause?: unknown;
    }): HubError;
    readonly prototype: HubError;
}
/** Where positions survive a reload of the page, such as `window.sessionStorage`. */
export interface PositionStorage {
    getItem(key: string): string | null;
    setItem(key: string, value: string): void;
    removeItem(key: string): void;
}
/** The part of a WebSocket that the client uses. */
export interface WebSocketLike {
    onopen: ((event: never) => void) | null;
    onmessage: ((event: {
        data: unknown;
    }) => void) | null;
    onerror: ((event: never) => void) | null;
    onclose: ((event: {
        code: number;
        reason: string;
    }) => void) | null;
    send(text: string): void;
    close(code?: number, reason?: string): void;
}
/** Constructor of WebSockets: the global one, or that of the package `ws`. */
export type WebSocketConstructor = new (url: string, protocols: string[]) => unknown;
/** Time and timers, which tests replace. */
export interface Clock {
    /** Returns milliseconds of a clock that is never set. */
    now(): number;
    setTimeout(callback: () => void, ms: number): unknown;
    clearTimeout(timer: never): void;
}
/** Settings of a hub. Times are in milliseconds. */
export interface HubOptions {
    /** A token, or a function that returns one, called at each connect and at 80 % of its life. */
    token?: string | (() => string | Promise<string>);
    /** Where positions survive a reload of the page. Default: nowhere. */
    storage?: PositionStorage;
    /** Constructor of WebSockets. Default: the global one. */
    WebSocket?: WebSocketConstructor;
    /** Lower limit of the backoff. Default: 500. */
    minDelay?: number;
    /** Upper limit of the backoff. Default: 20,000. */
    maxDelay?: number;
    /** Time after which an attempt to connect has failed. Default: 10,000. */
    connectTimeout?: number;
    /** Time within which the server answers a ping. Default: 10,000. */
    pongTimeout?: number;
    /** Bytes of messages that wait for a handler, for each subscription. Default: 1 MiB. */
    maxQueueBytes?: number;
    /** Bytes that wait to be published. Default: 1 MiB. */
    maxPendingBytes?: number;
    /** Time after which `echo` and `history` fail. Default: 30,000. */
    requestTimeout?: number;
    /** Time after which a publish fails that was sent. Default: 120,000. */
    publishTimeout?: number;
    /** Time and timers. Default: those of the platform. */
    clock?: Clock;
}
export interface SubscribeOptions {
    /** Number of the last messages to get first. */
    history?: number;
    /** Joins the topic's presence and watches it (`true`), or does one of both. */
    presence?: true | {
        watch?: boolean;
        info?: unknown;
        key?: string;
    };
}
export interface PublishOptions {
    /** Does not send the message to this client's own subscriptions. Default: `false`. */
    excludeSelf?: boolean;
    /** Waits for the answer to the publish before it on the same topic. Default: `true`. */
    ordered?: boolean;
}
export interface HistoryOptions {
    /** Offset of the first message; a negative number counts from the end. */
    from?: number;
    /** Number of messages, at most 1,000. Default: 100. */
    limit?: number;
    order?: "asc" | "desc";
}
export interface HubEvents {
    state: HubStateEvent;
    error: HubError;
    message: DirectMessage;
}
export interface SubscriptionEvents<T = unknown> {
    state: SubscriptionStateEvent;
    message: Message<T>;
    gap: Gap;
    presence: Presence;
}
/** One subscription of the application. Iterating over it yields its messages. */
export interface Subscription<T = unknown> extends AsyncIterable<Message<T>> {
    readonly topic: string;
    readonly state: SubscriptionStateEvent;
    /** Resolves at the first `subscribed`, and rejects with a `HubError` if the subscription ends before. */
    readonly ready: Promise<void>;
    /** Adds a listener, and returns a function that removes it. The next message waits for its promise. */
    on<K extends keyof SubscriptionEvents<T>>(event: K, listener: (event: SubscriptionEvents<T>[K]) => unknown): () => void;
    off<K extends keyof SubscriptionEvents<T>>(event: K, listener: (event: SubscriptionEvents<T>[K]) => unknown): void;
    unsubscribe(): void;
}
/** A connection to a hub that comes back by itself. */
export interface Hub {
    readonly url: string;
    readonly state: HubStateEvent;
    /** The client's ID of the last connection. */
    readonly clientId: string | undefined;
    /** Adds a listener, and returns a function that removes it. */
    on<K extends keyof HubEvents>(event: K, listener: (event: HubEvents[K]) => unknown): () => void;
    off<K extends keyof HubEvents>(event: K, listener: (event: HubEvents[K]) => unknown): void;
    /** Subscribes to a topic or pattern. Subscriptions of one topic share one on the wire. */
    subscribe<T = unknown>(topic: string, options?: SubscribeOptions): Subscription<T>;
    /** Publishes a message, over reconnects too, and returns the server's answer. */
    publish(topic: string, message: unknown, options?: PublishOptions): Promise<Published>;
    /** Returns `data` as the server sent it back. */
    echo<T>(data: T): Promise<T>;
    /** Reads kept messages of a topic. */
    history<T = unknown>(topic: string, options?: HistoryOptions): Promise<History<T>>;
    /** Closes the hub for good. The promise resolves when the socket is closed. */
    close(): Promise<void>;
}
export interface HubConstructor {
    new (url: string, options?: HubOptions): Hub;
    readonly prototype: Hub;
}
export declare const Hub: HubConstructor;
export declare const HubError: HubErrorConstructor;
