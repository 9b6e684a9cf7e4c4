# Varnish in front of Tricast: a whole configuration. Change the lines marked with <--, and start it with these
# parameters (on Debian in the ExecStart of the service, `systemctl edit varnish`):
#
#     varnishd -a :80 -f /etc/varnish/tricast.vcl -p pipe_timeout=75 -p timeout_idle=75
#
# pipe_timeout: silence that ends a WebSocket: more than twice websocket.ping_interval (20 s).
# timeout_idle: how long a client's connection is kept for the next request, instead of 5 s; those who poll come back.
# Every subscriber holds a thread, a WebSocket or event stream as long as it stays: thread_pool_max (5000 in each of two
# pools) is how many there can be. Varnish does not do TLS: that is for Hitch or HAProxy before it.
# For Varnish 6.0 and later; tested with 7.1.1.
#
# Without [auth] in its configuration, whoever reaches Tricast can subscribe and publish, over WebSocket as well as with
# POST /publish. Have that, or decide in vcl_recv who may: an acl.

vcl 4.1;

import directors;

# A server that starts, drains or cannot reach its log gets no new clients, as soon as a probe has told.
probe ready {
    .url = "/readyz";
    .interval = 2s;
    .timeout = 1s;
    .window = 2;
    .threshold = 2;
    .initial = 2;
}

# Tricast's servers. More than one have to share their events (log.url = "sqlite:///..."); a client may then come to
# another one with every request, so nothing has to be sticky.
backend one {
    .host = "127.0.0.1";  # <--
    .port = "8080";
    .probe = ready;
    .connect_timeout = 5s;
    # The longest wait for an answer: more than poll.timeout (25 s).
    .first_byte_timeout = 75s;
    # Silence that ends an event stream: more than twice sse.keepalive (15 s).
    .between_bytes_timeout = 75s;
}

# backend two { ... }

sub vcl_init {
    new tricast = directors.round_robin();
    tricast.add_backend(one);
    # tricast.add_backend(two);
}

sub vcl_recv {
    set req.backend_hint = tricast.backend();

    # Varnish adds the client's address to X-Forwarded-For. Tricast believes it where this Varnish is among
    # server.trusted_proxies, and these two as well, so what a client says must not pass.
    unset req.http.X-Forwarded-Host;
    set req.http.X-Forwarded-Proto = "http";  # <-- or what Hitch or HAProxy says

    # For the operator; ask Tricast itself.
    if (req.url ~ "^/metrics(\?|$)") {
        return (synth(403));
    }
    # What Tricast does not know is not for it. (Varnish would hand it on, with all that follows on the connection.)
    if (req.method !~ "^(GET|HEAD|POST|OPTIONS)$") {
        return (synth(405));
    }
    # A WebSocket becomes a pipe: from here on Varnish looks at nothing that comes on this connection. If Tricast
    # refuses, further requests on it reach Tricast unseen: rules in here keep nobody from anything for certain.
    if (req.method == "GET" && req.http.Upgrade ~ "(?i)^websocket$" && req.http.Connection ~ "(?i)upgrade") {
        return (pipe);
    }
    # Nothing is cached, and nobody waits for anybody. Without this, clients that ask for the same wait until the first of
    # them is answered, in the hope that it can be cached, and miss what came meanwhile (observed with 7.1.1).
    return (pass);
}

sub vcl_pipe {
    # A pipe says Connection: close otherwise.
    set bereq.http.Upgrade = req.http.Upgrade;
    set bereq.http.Connection = "Upgrade";
}

sub vcl_backend_error {
    # When a server cannot be reached, another one is tried, for what may be asked twice. Until a probe has told of it,
    # every second publish and WebSocket gets 503 (two servers), with Retry-After.
    if (bereq.retries == 0 && bereq.method == "GET") {
        set bereq.backend = tricast.backend();
        return (retry);
    }
}
