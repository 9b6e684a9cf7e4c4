// The WebSocket server that a newcomer to Go writes, after gorilla/websocket's chat example: a goroutine that reads and
// one that writes per connection, a channel between the hub and the writer, a ping every 30 seconds, a read deadline of
// 60. A subscriber whose channel is full is cut off.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

const (
	queued       = 256
	pingInterval = 30 * time.Second
	readTimeout  = 60 * time.Second
	writeTimeout = 10 * time.Second
	maxMessage   = 64 * 1024
)

var upgrader = websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 1024}

type hub struct {
	mutex  sync.Mutex
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
	if _, there := h.topics[topic][channel]; !there {
		return
	}
	close(channel)
	delete(h.topics[topic], channel)
	if len(h.topics[topic]) == 0 {
		delete(h.topics, topic)
	}
}

func (h *hub) publish(topic string, data []byte) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	for channel := range h.topics[topic] {
		select {
		case channel <- data:
		default:
			delete(h.topics[topic], channel)
			close(channel)
		}
	}
}

// read takes what comes, so that pongs and closes are handled, until the connection ends.
func read(connection *websocket.Conn, handle func(kind int, message []byte) error) {
	connection.SetReadLimit(maxMessage)
	connection.SetReadDeadline(time.Now().Add(readTimeout))
	connection.SetPongHandler(func(string) error { return connection.SetReadDeadline(time.Now().Add(readTimeout)) })
	for {
		kind, message, err := connection.ReadMessage()
		if err != nil || handle(kind, message) != nil {
			return
		}
	}
}

func write(connection *websocket.Conn, channel chan []byte) {
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	defer connection.Close()
	for {
		kind, message := websocket.TextMessage, []byte(nil)
		select {
		case event, open := <-channel:
			if !open {
				return
			}
			message = event
		case <-ticker.C:
			kind = websocket.PingMessage
		}
		connection.SetWriteDeadline(time.Now().Add(writeTimeout))
		if connection.WriteMessage(kind, message) != nil {
			return
		}
	}
}

func (h *hub) serveEvents(w http.ResponseWriter, r *http.Request) {
	connection, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	topic := r.URL.Query().Get("topic")
	channel := h.add(topic)
	defer h.remove(topic, channel)
	if connection.WriteMessage(websocket.TextMessage, []byte("ok")) != nil {
		connection.Close()
		return
	}
	go write(connection, channel)
	read(connection, func(int, []byte) error { return nil })
}

func serveEcho(w http.ResponseWriter, r *http.Request) {
	connection, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer connection.Close()
	read(connection, connection.WriteMessage)
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
	http.HandleFunc("GET /ws", h.serveEvents)
	http.HandleFunc("GET /echo", serveEcho)
	http.HandleFunc("POST /publish", h.servePublish)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on http://%s\n", listener.Addr())
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.Serve(listener))
}
