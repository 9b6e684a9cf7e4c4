// The WebSocket server that a newcomer to Go writes, after gorilla/websocket's chat example: a goroutine that reads and
// one that writes per connection, a channel between the hub and the writer, a ping every 30 seconds, a read deadline of
// 60. A subscriber whose channel is full is cut off.
package main

import (
	"net/http"
	"time"

	"bench/go/hub"
	"github.com/gorilla/websocket"
)

const (
	pingInterval = 30 * time.Second
	readTimeout  = 60 * time.Second
	writeTimeout = 10 * time.Second
	maxMessage   = 64 * 1024
)

var upgrader = websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 1024}

var events = hub.New(func(_ int, data []byte) []byte { return data })

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

func serveEvents(w http.ResponseWriter, r *http.Request) {
	connection, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	topic := r.URL.Query().Get("topic")
	channel := events.Add(topic)
	defer events.Remove(topic, channel)
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

func main() {
	http.HandleFunc("GET /ws", serveEvents)
	http.HandleFunc("GET /echo", serveEcho)
	events.Serve()
}
