// The SSE server that a newcomer to Go writes with the standard library: a channel per subscriber, a keepalive comment
// every 30 seconds. A subscriber whose channel is full is cut off, and its EventSource comes back.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	queued    = 256
	keepalive = 30 * time.Second
)

type hub struct {
	mutex  sync.Mutex
	events int
	topics map[string]map[chan []byte]struct{}
}

func (h *hub) add(topic string) chan []byte {
	channel := make(chan []byte, queued)
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if h.topics[topic] == nil {
		h.topics[topic] = map[chan []byte]struct{}{}
	}
	h.topics[topic][channel] = struct{}{}
	return channel
}

func (h *hub) remove(topic string, channel chan []byte) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	delete(h.topics[topic], channel)
	if len(h.topics[topic]) == 0 {
		delete(h.topics, topic)
	}
}

func (h *hub) publish(topic string, data []byte) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.events++
	event := fmt.Appendf(nil, "id: %d\ndata: %s\n\n", h.events, data)
	for channel := range h.topics[topic] {
		select {
		case channel <- event:
		default:
			delete(h.topics[topic], channel)
			close(channel)
		}
	}
}

func (h *hub) serveEvents(w http.ResponseWriter, r *http.Request) {
	topic := r.URL.Query().Get("topic")
	channel := h.add(topic)
	defer h.remove(topic, channel)
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

func (h *hub) servePublish(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.publish(r.URL.Query().Get("topic"), data)
	w.WriteHeader(http.StatusNoContent)
}

func main() {
	h := &hub{topics: map[string]map[chan []byte]struct{}{}}
	http.HandleFunc("GET /events", h.serveEvents)
	http.HandleFunc("POST /publish", h.servePublish)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on http://%s\n", listener.Addr())
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.Serve(listener))
}
