// The SSE server that a newcomer to Go writes with the standard library: a channel per subscriber, a keepalive comment
// every 30 seconds. A subscriber whose channel is full is cut off, and its EventSource comes back.
package main

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"bench/go/hub"
)

const keepalive = 30 * time.Second

var events = hub.New(func(number int, data []byte) []byte {
	return fmt.Appendf(nil, "id: %d\ndata: %s\n\n", number, data)
})

func serveEvents(w http.ResponseWriter, r *http.Request) {
	topic := r.URL.Query().Get("topic")
	channel := events.Add(topic)
	defer events.Remove(topic, channel)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	flusher := w.(http.Flusher)
	io.WriteString(w, ":ok\n\n")
	flusher.Flush()
	ticker := time.NewTicker(keepalive)
	defer ticker.Stop()
	for {
		var err error
		select {
		case <-r.Context().Done():
			return
		case event, open := <-channel:
			if !open {
				return
			}
			_, err = w.Write(event)
		case <-ticker.C:
			_, err = io.WriteString(w, ":\n\n")
		}
		if err != nil {
			return
		}
		flusher.Flush()
	}
}

func main() {
	http.HandleFunc("GET /events", serveEvents)
	events.Serve()
}
