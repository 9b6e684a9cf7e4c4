// Package hub is what both servers share: a channel per subscriber, and publishing over HTTP.
package hub

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// Queued is how many events wait for one subscriber, before it is cut off.
const Queued = 256

// Hub knows who subscribed to what.
type Hub struct {
	mutex  sync.Mutex
	events int
	topics map[string]map[chan []byte]struct{}
	encode func(number int, data []byte) []byte
}

// New makes a hub that encodes each event once.
func New(encode func(number int, data []byte) []byte) *Hub {
	return &Hub{topics: map[string]map[chan []byte]struct{}{}, encode: encode}
}

// Add makes a subscriber's channel. It is closed when the subscriber is cut off.
func (h *Hub) Add(topic string) chan []byte {
	channel := make(chan []byte, Queued)
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if h.topics[topic] == nil {
		h.topics[topic] = map[chan []byte]struct{}{}
	}
	h.topics[topic][channel] = struct{}{}
	return channel
}

// Remove takes a subscriber away, and closes its channel if that was not done yet.
func (h *Hub) Remove(topic string, channel chan []byte) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.drop(topic, channel)
}

func (h *Hub) drop(topic string, channel chan []byte) {
	if _, there := h.topics[topic][channel]; !there {
		return
	}
	close(channel)
	delete(h.topics[topic], channel)
	if len(h.topics[topic]) == 0 {
		delete(h.topics, topic)
	}
}

func (h *Hub) publish(topic string, data []byte) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.events++
	event := h.encode(h.events, data)
	for channel := range h.topics[topic] {
		select {
		case channel <- event:
		default:
			h.drop(topic, channel)
		}
	}
}

func (h *Hub) servePublish(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.publish(r.URL.Query().Get("topic"), data)
	w.WriteHeader(http.StatusNoContent)
}

// Serve serves what is registered with net/http, and POST /publish, on a free port until the process is ended.
func (h *Hub) Serve() {
	http.HandleFunc("POST /publish", h.servePublish)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on http://%s\n", listener.Addr())
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.Serve(listener))
}
