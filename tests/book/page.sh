# Runs the blocks of one page of the book in one shell, as a reader would: page.sh FOLDER.
# FOLDER/blocks has a line per block: NUMBER LANGUAGE PLACE. Block 3 is the file 3.block; 3.expect
# has the text that it must print.
#
# Input variables: PORT and API_PORT for the page's server, PYTHON, NODE_PATH.
set -euo pipefail
cd "$1"
# Variables of the tests, or of the person who runs them, are not a reader's.
unset "${!DEEPERHUB_@}"
export DEEPERHUB_PORT=$PORT DEEPERHUB_API_LISTEN=127.0.0.1:$API_PORT
declare -A servers=()
out=/dev/null
place="the start"
expected=
# Longest wait for a single event, in seconds; far more than a busy machine needs.
wait_timeout=120

# Repeats a command until it succeeds. For commands that only read: what they wait for may happen
# late on a busy machine.
eventually() {
    local deadline=$((SECONDS + wait_timeout))
    until "$@"; do
        if [ "$SECONDS" -ge "$deadline" ]; then return 1; fi
        sleep 0.05
    done
}

# Like `eventually`, but gives up if a process ends.
eventually_while() {
    local process=$1 deadline=$((SECONDS + wait_timeout))
    shift
    until "$@"; do
        if [ "$SECONDS" -ge "$deadline" ] || ! kill -0 "$process" 2>/dev/null; then "$@"; return; fi
        sleep 0.05
    done
}

ended() {
    local code=$?
    if [ "$code" != 0 ]; then
        echo "$place ended with $code; it printed:" >&2
        cat "$out" >&2
    fi
    kill -KILL $(jobs -p) 2>/dev/null
    exit "$code"
}
trap ended EXIT

# Starts a server instead of an earlier one on its port and waits until it is ready. It becomes the
# last job.
serve() {
    local port=$PORT previous= argument
    for argument; do
        [ "$previous" = --port ] && port=$argument
        previous=$argument
    done
    if [ -n "${servers[$port]-}" ]; then
        kill -KILL "${servers[$port]}" 2>/dev/null || true
        wait "${servers[$port]}" 2>/dev/null || true
    fi
    # Emptied, so that an earlier server's line does not count.
    : >"served-$port"
    command deeperhub-ws "$@" >"served-$port" 2>"logged-$port" &
    servers[$port]=$!
    if eventually_while "${servers[$port]}" grep -q listening "served-$port"; then return; fi
    echo "no server with $*:" >&2
    cat "logged-$port" >&2
    return 1
}

# Replaces deeperhub-ws in blocks: servers run in the background, and benches are short.
deeperhub-ws() {
    case "${1-}" in
        bench)
            [[ " $* " = *" --url "* ]] || set -- "$@" --url "ws://127.0.0.1:$PORT/"
            # A storm of returns ends when all clients are live.
            [[ " $* " = *" recover "* ]] && set -- "$@" --warmup 300ms || set -- "$@" --duration 300ms
            command deeperhub-ws "$@" --connect-timeout 60s ;;
        health) eventually command deeperhub-ws "$@" ;;
        config | token | schema | completions) command deeperhub-ws "$@" ;;
        *) serve "$@" ;;
    esac
}

# Starts the broker in the background and waits until it listens: a node that starts earlier joins
# its cluster late.
nats-server() {
    command nats-server "$@" >broker.log 2>&1 &
    if eventually_while "$!" grep -q 'Server is ready' broker.log; then return; fi
    echo "no broker with $*:" >&2
    cat broker.log >&2
    return 1
}

# The same for Redis, which keeps history.
redis-server() {
    command redis-server "$@" --dir . --save '' >redis.log 2>&1 &
    if eventually_while "$!" grep -q 'Ready to accept connections' redis.log; then return; fi
    echo "no broker with $*:" >&2
    cat redis.log >&2
    return 1
}

# Lets a client connect and disconnect; succeeds if the event stream has printed the expected text.
is_streamed() {
    command deeperhub-ws bench idle --connections 1 --duration 100ms --url "ws://127.0.0.1:$PORT/" >/dev/null
    grep -qF -- "${expected:-data:}" streamed
}

# Sends a request; succeeds if the answer has the expected text.
answers() {
    command curl -sS "$@" >answered && { [ -z "$expected" ] || grep -qF -- "$expected" answered; }
}

# A path or method that the API does not have is a fault of the page, even if curl succeeds. An
# event stream never ends, so clients connect until it has printed the expected text. A request that
# only reads is repeated until the answer has this text.
curl() {
    case " $* " in
        *" -N "*)
            command curl -sS "$@" >streamed &
            local stream=$!
            eventually_while "$stream" is_streamed || true
            kill "$stream" 2>/dev/null || true
            cat streamed
            return ;;
        *" -d "* | *" -X "*) command curl -sS "$@" >answered ;;
        *)
            if ! eventually answers "$@"; then
                cat answered
                return 1
            fi ;;
    esac
    cat answered
    echo
    ! grep -qE '"code":"(not_found|method_not_allowed|unauthorized|invalid_[a-z]+)"' answered
}

# Succeeds if a program has printed a text that is not empty.
has_printed() {
    [ -n "$1" ] && grep -qF -- "$1" "$out"
}

# Runs a program that may never exit until it has printed the expected text.
run_program() {
    local expected=$1 program
    shift
    "$@" >"$out" 2>&1 &
    program=$!
    # Without an expected text, this waits for the end of the program.
    eventually_while "$program" has_printed "$expected" || true
    kill -KILL "$program" 2>/dev/null || true
    wait "$program" 2>/dev/null || [ -n "$expected" ]
}

serve
while read -r number language place <&3; do
    out=$number.out
    expected=
    if [ -e "$number.expect" ]; then expected=$(<"$number.expect"); fi
    case $language in
        defaults)
            unset "${!DEEPERHUB_@}"
            export DEEPERHUB_PORT=$PORT DEEPERHUB_API_LISTEN=127.0.0.1:$API_PORT
            serve
            continue ;;
        sh) source "./$number.block" >"$out" 2>&1 ;;
        js)
            {
                echo 'const token = process.env.TOKEN; globalThis.WebSocket = require("ws");'
                # A block with its own client is a program for Node.js.
                grep -v 'const WebSocket = ' "$number.block"
            } >"$number.cjs"
            TOKEN=${TOKEN-} run_program "$expected" node "$number.cjs" ;;
        python) TOKEN=${TOKEN-} run_program "$expected" "$PYTHON" "$number.block" ;;
    esac
    if [ -n "$expected" ] && ! grep -qF -- "$expected" "$out"; then
        echo "$expected is not in what it printed" >>"$out"
        exit 1
    fi
done 3<blocks
