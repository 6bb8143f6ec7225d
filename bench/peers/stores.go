package main

import (
	"context"
	"crypto/tls"
	_ "embed"
	"errors"
	"net"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

const (
	keyPrefix    = "session:"
	storeTimeout = 5 * time.Second // as catraca has in the bench
)

// touchScript is catraca's own, copied here by the build.
//
//go:embed touch.lua
var touchScript string

// goRedis asks in one pipeline a call, over a pool of connections.
type goRedis struct {
	client *redis.Client
	script *redis.Script
}

func openGoRedis(socket string) *goRedis {
	return &goRedis{
		client: redis.NewClient(&redis.Options{
			Network:               "unix",
			Addr:                  socket,
			PoolSize:              32, // more were no faster on one core
			ReadTimeout:           storeTimeout,
			WriteTimeout:          storeTimeout,
			ContextTimeoutEnabled: true,
		}),
		script: redis.NewScript(touchScript),
	}
}

func (s *goRedis) read(ctx context.Context, sessionID string) ([]byte, int64, error) {
	key := keyPrefix + sessionID
	pipeline := s.client.Pipeline()
	get := pipeline.Get(ctx, key)
	expiry := pipeline.PExpireTime(ctx, key)
	if _, err := pipeline.Exec(ctx); errors.Is(err, redis.Nil) {
		return nil, 0, nil
	} else if err != nil {
		return nil, 0, err
	}
	record, err := get.Bytes()
	return record, expiry.Val().Milliseconds(), err
}

func (s *goRedis) touch(ctx context.Context, sessionID string, record []byte, expiryMs int64) (bool, error) {
	same, err := s.script.Run(ctx, s.client, []string{keyPrefix + sessionID}, record, expiryMs).Int()
	return same == 1, err
}

// multiplexed asks over one connection that all calls share (rueidis with auto-pipelining).
type multiplexed struct {
	client rueidis.Client
	script *rueidis.Lua
}

func openRueidis(socket string) (*multiplexed, error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{socket},
		DialCtxFn: func(ctx context.Context, _ string, dialer *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		ConnWriteTimeout:  storeTimeout,
		DisableCache:      true,
		AlwaysPipelining:  true,
		ForceSingleClient: true,
	})
	return &multiplexed{client, rueidis.NewLuaScript(touchScript)}, err
}

func (s *multiplexed) read(ctx context.Context, sessionID string) ([]byte, int64, error) {
	key := keyPrefix + sessionID
	replies := s.client.DoMulti(ctx, s.client.B().Get().Key(key).Build(), s.client.B().Pexpiretime().Key(key).Build())
	record, err := replies[0].AsBytes()
	if rueidis.IsRedisNil(err) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	expiryMs, err := replies[1].AsInt64()
	return record, expiryMs, err
}

func (s *multiplexed) touch(ctx context.Context, sessionID string, record []byte, expiryMs int64) (bool, error) {
	arguments := []string{rueidis.BinaryString(record), strconv.FormatInt(expiryMs, 10)}
	same, err := s.script.Exec(ctx, s.client, []string{keyPrefix + sessionID}, arguments).AsInt64()
	return same == 1, err
}
