# Runs the blocks of one page of the book in one shell, as a reader would: page.sh FOLDER.
# FOLDER/blocks has a line per block: NUMBER LANGUAGE PLACE. Block 3 is the file 3.block; 3.expect
# has the text that it must print.
#
# Input variables: PORT and API_PORT for the page's server, PYTHON, NODE_PATH.
set -euo pipefail
cd "$1"
export DEEPERHUB_PORT=$PORT DEEPERHUB_API_LISTEN=127.0.0.1:$API_PORT
declare -A servers=()
out=/dev/null
place="the start"

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
    for _ in {1..600}; do
        if grep -q listening "served-$port"; then return; fi
        kill -0 "${servers[$port]}" 2>/dev/null || break
        sleep 0.05
    done
    echo "no server with $*:" >&2
    cat "logged-$port" >&2
    return 1
}

# Replaces deeperhub-ws in blocks: servers run in the background, and benches are short.
deeperhub-ws() {
    case "${1-}" in
        bench)
            [[ " $* " = *" --url "* ]] || set -- "$@" --url "ws://127.0.0.1:$PORT/"
            command deeperhub-ws "$@" --duration 300ms ;;
        config | health | token | schema | completions) command deeperhub-ws "$@" ;;
        *) serve "$@" ;;
    esac
}

# A path or method that the API does not have is a fault of the page, even if curl succeeds. An
# event stream never ends, so clients connect until it has printed the expected text.
curl() {
    if [[ " $* " = *" -N "* ]]; then
        command curl -sS "$@" >streamed &
        local stream=$!
        for _ in {1..100}; do
            command deeperhub-ws bench idle --connections 1 --duration 100ms --url "ws://127.0.0.1:$PORT/" >/dev/null
            if grep -qF -- "${expected:-data:}" streamed; then break; fi
        done
        kill "$stream"
        cat streamed
        return
    fi
    command curl -sS "$@" >answered
    cat answered
    echo
    ! grep -qE '"code":"(not_found|method_not_allowed|unauthorized|invalid_[a-z]+)"' answered
}

# Runs a program that may never exit until it has printed the expected text.
run_program() {
    local expected=$1 program
    shift
    "$@" >"$out" 2>&1 &
    program=$!
    for _ in {1..600}; do
        if [ -n "$expected" ] && grep -qF -- "$expected" "$out"; then break; fi
        kill -0 "$program" 2>/dev/null || break
        sleep 0.05
    done
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
