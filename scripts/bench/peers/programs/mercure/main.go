// Mercure's hub on net/http: what its own server is, without Caddy around it. Arguments: the key for publishers' tokens
// and where updates go: "local" keeps none, a number keeps that many in a Bolt database in the current folder.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/dunglas/mercure"
	"go.uber.org/zap"
)

func transport(kept string, logger mercure.Logger) (mercure.Transport, error) {
	if kept == "local" {
		return mercure.NewLocalTransport(), nil
	}
	size, err := strconv.ParseUint(kept, 10, 64)
	if err != nil {
		return nil, err
	}
	return mercure.NewBoltTransport(logger, "updates.db", "updates", size, mercure.BoltDefaultCleanupFrequency)
}

func main() {
	config := zap.NewProductionConfig()
	config.Level = zap.NewAtomicLevelAt(zap.ErrorLevel)
	logger, err := config.Build()
	if err != nil {
		log.Fatal(err)
	}
	updates, err := transport(os.Args[2], logger)
	if err != nil {
		log.Fatal(err)
	}
	hub, err := mercure.NewHub(
		mercure.WithLogger(logger),
		mercure.WithTransport(updates),
		mercure.WithAnonymous(),
		mercure.WithPublisherJWT([]byte(os.Args[1]), "HS256"),
	)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on http://%s\n", listener.Addr())
	server := &http.Server{Handler: hub, ReadHeaderTimeout: 3 * time.Second}
	log.Fatal(server.Serve(listener))
}
