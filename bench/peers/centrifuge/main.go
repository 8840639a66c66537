// A server on centrifuge, the engine of Centrifugo: Redis broker, JSON over WebSockets, and the session that the
// URL names is subscribed to with the connect command, so that one command is all that a client says.
//
//	centrifuge [-ping SECONDS] [-write-delay MS] [-off-read-loop] PORT REDIS_PORT
//
// Without options it is as the library comes, but for buffers that are shared and replies that do not queue, which
// its documentation names for many connections. No history, no presence, no compression.
package main

import (
	"context"
	"flag"
	"log"
	"net/http"
	"time"

	"github.com/centrifugal/centrifuge"
)

type sessionKey struct{}

func main() {
	ping := flag.Int("ping", 25, "seconds between pings")
	writeDelay := flag.Int("write-delay", 0, "milliseconds in which messages to one client are gathered")
	offReadLoop := flag.Bool("off-read-loop", false, "small stacks for connections that are idle")
	flag.Parse()
	if flag.NArg() != 2 {
		log.Fatal("PORT and REDIS_PORT are needed")
	}
	port, redisPort := flag.Arg(0), flag.Arg(1)

	node, err := centrifuge.New(centrifuge.Config{})
	check(err)
	shard, err := centrifuge.NewRedisShard(node, centrifuge.RedisShardConfig{Address: "127.0.0.1:" + redisPort})
	check(err)
	broker, err := centrifuge.NewRedisBroker(node, centrifuge.RedisBrokerConfig{
		Shards: []*centrifuge.RedisShard{shard},
	})
	check(err)
	node.SetBroker(broker)

	pings := centrifuge.PingPongConfig{
		PingInterval: time.Duration(*ping) * time.Second,
		PongTimeout:  time.Duration(*ping) * time.Second * 4 / 5,
	}
	node.OnConnecting(func(ctx context.Context, _ centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		reply := centrifuge.ConnectReply{
			ReplyWithoutQueue: true,
			WriteDelay:        time.Duration(*writeDelay) * time.Millisecond,
			WriteWithTimer:    *writeDelay > 0,
		}
		if session, _ := ctx.Value(sessionKey{}).(string); session != "" {
			reply.Subscriptions = map[string]centrifuge.SubscribeOptions{session: {}}
		}
		return reply, nil
	})
	check(node.Run())

	sockets := centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{
		CheckOrigin:                func(*http.Request) bool { return true },
		UseWriteBufferPool:         true,
		ProcessCommandsOffReadLoop: *offReadLoop,
		PingPongConfig:             pings,
	})
	http.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		ctx := centrifuge.SetCredentials(r.Context(), &centrifuge.Credentials{})
		ctx = context.WithValue(ctx, sessionKey{}, r.URL.Query().Get("sessionId"))
		sockets.ServeHTTP(w, r.WithContext(ctx))
	})
	check(http.ListenAndServe("127.0.0.1:"+port, nil))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
