// The library that Centrifugo is built of: anybody may connect and subscribe, nothing is kept. The event stream is the
// library's, and names its topic in the data of its connect command. The WebSocket is unidirectional, as Centrifugo adds
// one to the library. Pings are sent, answers to them are not waited for.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/centrifugal/centrifuge"
	"github.com/gorilla/websocket"
)

var (
	upgrader = websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 1024}
	pings    = centrifuge.PingPongConfig{PingInterval: 25 * time.Second, PongTimeout: -1}
)

// transport is a WebSocket that only the server sends on.
type transport struct{ connection *websocket.Conn }

func (t transport) Name() string                                { return "uni_websocket" }
func (t transport) AcceptProtocol() string                      { return "h1" }
func (t transport) Protocol() centrifuge.ProtocolType           { return centrifuge.ProtocolTypeJSON }
func (t transport) ProtocolVersion() centrifuge.ProtocolVersion { return centrifuge.ProtocolVersion2 }
func (t transport) Unidirectional() bool                        { return true }
func (t transport) Emulation() bool                             { return false }
func (t transport) DisabledPushFlags() uint64                   { return centrifuge.PushFlagDisconnect }
func (t transport) PingPongConfig() centrifuge.PingPongConfig   { return pings }

func (t transport) Write(message []byte) error {
	t.connection.SetWriteDeadline(time.Now().Add(time.Second))
	return t.connection.WriteMessage(websocket.TextMessage, message)
}

func (t transport) WriteMany(messages ...[]byte) error {
	for _, message := range messages {
		if err := t.Write(message); err != nil {
			return err
		}
	}
	return nil
}

func (t transport) Close(centrifuge.Disconnect) error { return t.connection.Close() }

func serveWebsocket(node *centrifuge.Node, w http.ResponseWriter, r *http.Request) {
	connection, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer connection.Close()
	client, leave, err := centrifuge.NewClient(r.Context(), node, transport{connection})
	if err != nil {
		return
	}
	defer leave()
	client.Connect(centrifuge.ConnectRequest{Data: []byte(r.URL.Query().Get("connect"))})
	for {
		if _, _, err := connection.ReadMessage(); err != nil {
			return
		}
	}
}

func connecting(_ context.Context, event centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
	reply := centrifuge.ConnectReply{Credentials: &centrifuge.Credentials{}}
	var wanted struct{ Topic string }
	if err := json.Unmarshal(event.Data, &wanted); err != nil {
		return reply, centrifuge.DisconnectBadRequest
	}
	reply.Subscriptions = map[string]centrifuge.SubscribeOptions{wanted.Topic: {}}
	return reply, nil
}

func main() {
	node, err := centrifuge.New(centrifuge.Config{})
	if err != nil {
		log.Fatal(err)
	}
	node.OnConnecting(connecting)
	if err := node.Run(); err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("GET /websocket", func(w http.ResponseWriter, r *http.Request) { serveWebsocket(node, w, r) })
	http.Handle("GET /sse", centrifuge.NewSSEHandler(node, centrifuge.SSEConfig{PingPongConfig: pings}))
	http.HandleFunc("POST /publish", func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err == nil {
			_, err = node.Publish(r.URL.Query().Get("topic"), data)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on http://%s\n", listener.Addr())
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.Serve(listener))
}
