/* The floor: what delivering to many subscribers costs with nothing around it.
 *
 * epoll accepts, a request is parsed as little as possible, and an event is one send() per subscriber in a plain loop.
 * GET /events is SSE, GET /ws a WebSocket, POST /publish publishes; topics are ignored, everybody gets everything.
 * What a socket does not take is kept and sent when it is writable; beyond a MiB the subscriber is cut off.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { REQUEST_BYTES = 128 * 1024, HEAD_BYTES = 2048, BEHIND_BYTES = 1024 * 1024, MOST_DESCRIPTORS = 1 << 20, ACCEPTS = 64 };
enum kind { HTTP, SSE, WEBSOCKET };

struct peer {
    int descriptor, slot;
    enum kind kind;
    char *input, *tail;
    size_t input_room, input_length, tail_length;
    struct peer *next;
};

static struct peer *subscribers[MOST_DESCRIPTORS];
static struct peer *dropped; /* freed after the round, in which events may still name them */
static int subscriber_count, poll_descriptor;
static unsigned long events;

static void watch(struct peer *peer, uint32_t wanted, int operation) {
    struct epoll_event event = {.events = wanted, .data.ptr = peer};
    epoll_ctl(poll_descriptor, operation, peer->descriptor, &event);
}

static void drop(struct peer *peer) {
    if (peer->kind != HTTP) {
        subscribers[peer->slot] = subscribers[--subscriber_count];
        subscribers[peer->slot]->slot = peer->slot;
    }
    close(peer->descriptor);
    free(peer->input);
    free(peer->tail);
    peer->descriptor = -1;
    peer->next = dropped;
    dropped = peer;
}

/* Sends, and keeps what is not taken. 0 when the peer had to be dropped. */
static int deliver(struct peer *peer, const char *data, size_t length) {
    if (!peer->tail) {
        ssize_t sent = send(peer->descriptor, data, length, MSG_NOSIGNAL);
        if (sent == (ssize_t)length)
            return 1;
        if (sent < 0 && errno != EAGAIN) {
            drop(peer);
            return 0;
        }
        if (sent > 0) {
            data += sent;
            length -= (size_t)sent;
        }
        watch(peer, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    }
    char *longer = peer->tail_length + length > BEHIND_BYTES ? NULL : realloc(peer->tail, peer->tail_length + length);
    if (!longer) {
        drop(peer);
        return 0;
    }
    memcpy(longer + peer->tail_length, data, length);
    peer->tail = longer;
    peer->tail_length += length;
    return 1;
}

/* Sends what was kept. 0 when the peer had to be dropped. */
static int catch_up(struct peer *peer) {
    ssize_t sent = send(peer->descriptor, peer->tail, peer->tail_length, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno == EAGAIN)
            return 1;
        drop(peer);
        return 0;
    }
    peer->tail_length -= (size_t)sent;
    if (peer->tail_length) {
        memmove(peer->tail, peer->tail + sent, peer->tail_length);
    } else {
        free(peer->tail);
        peer->tail = NULL;
        watch(peer, EPOLLIN, EPOLL_CTL_MOD);
    }
    return 1;
}

static void publish(const char *data, size_t length) {
    static char sse[REQUEST_BYTES + 64], websocket[REQUEST_BYTES + 16];
    size_t sse_length = (size_t)sprintf(sse, "id: %lu\ndata: ", ++events), head = 2;
    memcpy(sse + sse_length, data, length);
    memcpy(sse + sse_length + length, "\n\n", 2);
    sse_length += length + 2;
    websocket[0] = (char)0x81;
    if (length < 126) {
        websocket[1] = (char)length;
    } else if (length < 65536) {
        websocket[1] = 126;
        websocket[2] = (char)(length >> 8);
        websocket[3] = (char)length;
        head = 4;
    } else {
        websocket[1] = 127;
        for (int i = 0; i < 8; i++)
            websocket[2 + i] = (char)((uint64_t)length >> (56 - 8 * i));
        head = 10;
    }
    memcpy(websocket + head, data, length);
    /* Downwards: one that is dropped is replaced by one that had its event already. */
    for (int i = subscriber_count - 1; i >= 0; i--) {
        if (subscribers[i]->kind == SSE)
            deliver(subscribers[i], sse, sse_length);
        else
            deliver(subscribers[i], websocket, head + length);
    }
}

static uint32_t rotated(uint32_t value, int by) { return value << by | value >> (32 - by); }

/* SHA-1 of less than 120 bytes: a WebSocket key and its GUID are 60 (RFC 6455 4.2.2). */
static void sha1(const char *text, size_t length, unsigned char digest[20]) {
    unsigned char blocks[128] = {0};
    uint32_t state[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0}, words[80];
    size_t total = length < 56 ? 64 : 128;
    memcpy(blocks, text, length);
    blocks[length] = 0x80;
    blocks[total - 2] = (unsigned char)(length * 8 >> 8);
    blocks[total - 1] = (unsigned char)(length * 8);
    for (unsigned char *block = blocks; block < blocks + total; block += 64) {
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
        for (int i = 0; i < 16; i++)
            words[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
                       block[4 * i + 3];
        for (int i = 16; i < 80; i++)
            words[i] = rotated(words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16], 1);
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20 ? (b & c) | (~b & d) : i < 40 || i >= 60 ? b ^ c ^ d : (b & c) | (b & d) | (c & d);
            uint32_t k = i < 20 ? 0x5A827999 : i < 40 ? 0x6ED9EBA1 : i < 60 ? 0x8F1BBCDC : 0xCA62C1D6;
            uint32_t next = rotated(a, 5) + f + e + k + words[i];
            e = d, d = c, c = rotated(b, 30), b = a, a = next;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
    }
    for (int i = 0; i < 20; i++)
        digest[i] = (unsigned char)(state[i / 4] >> (24 - 8 * (i % 4)));
}

static void accept_key(const char *key, char out[29]) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char digest[21] = {0};
    char text[128];
    int length = snprintf(text, sizeof text, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    sha1(text, (size_t)length, digest);
    for (int i = 0; i < 7; i++) {
        uint32_t three = (uint32_t)digest[3 * i] << 16 | (uint32_t)digest[3 * i + 1] << 8 | digest[3 * i + 2];
        for (int j = 0; j < 4; j++)
            out[4 * i + j] = digits[three >> (18 - 6 * j) & 63];
    }
    out[27] = '=';
    out[28] = 0;
}

static void subscribe(struct peer *peer, enum kind kind, const char *greeting) {
    peer->kind = kind;
    peer->slot = subscriber_count;
    subscribers[subscriber_count++] = peer;
    free(peer->input);
    peer->input = NULL;
    deliver(peer, greeting, strlen(greeting));
}

/* Does what the request says. 0 when there is no longer anything to read here: incomplete, dropped, or subscribed. */
static int handle(struct peer *peer) {
    char *head_end = memmem(peer->input, peer->input_length, "\r\n\r\n", 4);
    if (!head_end)
        return 0;
    *head_end = 0;
    char *body = head_end + 4, *field;
    if (!strncmp(peer->input, "GET /events", 11)) {
        subscribe(peer, SSE, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
                             "Connection: close\r\n\r\n:ok\n\n");
        return 0;
    }
    if (!strncmp(peer->input, "GET /ws", 7) && (field = strcasestr(peer->input, "\r\nSec-WebSocket-Key: "))) {
        char key[29], greeting[256];
        accept_key(field + 21, key);
        snprintf(greeting, sizeof greeting,
                 "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 "Sec-WebSocket-Accept: %s\r\n\r\n\x81\x02ok", key);
        subscribe(peer, WEBSOCKET, greeting);
        return 0;
    }
    if (!strncmp(peer->input, "POST /publish", 13) && (field = strcasestr(peer->input, "\r\nContent-Length: "))) {
        size_t length = strtoul(field + 18, NULL, 10), used = (size_t)(body - peer->input) + length;
        *head_end = '\r';
        if (used > REQUEST_BYTES) {
            drop(peer);
            return 0;
        }
        if (used > peer->input_length)
            return 0;
        publish(body, length);
        peer->input_length -= used;
        memmove(peer->input, peer->input + used, peer->input_length);
        static const char done[] = "HTTP/1.1 204 No Content\r\n\r\n";
        return deliver(peer, done, sizeof done - 1) && peer->input_length;
    }
    drop(peer);
    return 0;
}

static void receive(struct peer *peer) {
    static char unused[65536];
    if (peer->kind != HTTP) {
        ssize_t got = recv(peer->descriptor, unused, sizeof unused, 0);
        int closing = peer->kind == WEBSOCKET && got > 0 && (unused[0] & 0x0f) == 8;
        if (got == 0 || closing || (got < 0 && errno != EAGAIN))
            drop(peer);
        return;
    }
    if (peer->input_length == peer->input_room) {
        peer->input_room = REQUEST_BYTES;
        peer->input = realloc(peer->input, peer->input_room);
    }
    ssize_t got = recv(peer->descriptor, peer->input + peer->input_length, peer->input_room - peer->input_length, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            drop(peer);
        return;
    }
    peer->input_length += (size_t)got;
    while (handle(peer)) {
    }
}

static void accept_some(int listener) {
    int on = 1;
    for (int i = 0; i < ACCEPTS; i++) {
        int descriptor = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (descriptor < 0)
            return;
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct peer *peer = calloc(1, sizeof *peer);
        peer->descriptor = descriptor;
        peer->input = malloc(peer->input_room = HEAD_BYTES);
        watch(peer, EPOLLIN, EPOLL_CTL_ADD);
    }
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096) ||
        getsockname(listener, (struct sockaddr *)&address, &size)) {
        perror("listen");
        return 1;
    }
    poll_descriptor = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event ready[256], listening = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poll_descriptor, EPOLL_CTL_ADD, listener, &listening);
    printf("listening on http://127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(poll_descriptor, ready, 256, -1);
        for (int i = 0; i < count; i++) {
            struct peer *peer = ready[i].data.ptr;
            if (!peer)
                accept_some(listener);
            else if (peer->descriptor < 0)
                continue;
            else if (!(ready[i].events & EPOLLOUT) || catch_up(peer))
                if (ready[i].events & ~(uint32_t)EPOLLOUT)
                    receive(peer);
        }
        while (dropped) {
            struct peer *next = dropped->next;
            free(dropped);
            dropped = next;
        }
    }
}
