// Peer is what an expert would write in Go for ValidateSession over the records that catraca writes: grpc-go, and
// go-redis or rueidis. The bench measures it beside catraca.
//
// It does what a validation has to do: it reads the token and its checksum, compares the secret's digest in constant
// time, reads the whole record, knows rotated tokens and their grace, and writes activity down when that is due, with
// catraca's own script. A call's deadline holds for the store as well.
//
// It does less than catraca, all to its own advantage: the time is this machine's and not the store's; a reused token
// ends no session, and salts are not dropped; there are no tokens that callers bring, no pepper, no batches, no bound on
// the calls in hand, no failover, no health, no reflection.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	pb "catraca.invalid/bench/peers/gen/catraca/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// sessionStore is what the service asks of a store.
type sessionStore interface {
	// read returns what is under a session's key, nil if nothing is, and when it expires (Unix ms).
	read(ctx context.Context, sessionID string) (record []byte, expiryMs int64, err error)
	// touch moves the expiry to a later time if the record still is the same, and says whether it is.
	touch(ctx context.Context, sessionID string, record []byte, expiryMs int64) (bool, error)
}

type service struct {
	pb.UnimplementedSessionServiceServer
	store sessionStore
}

func (s *service) ValidateSession(
	ctx context.Context, request *pb.ValidateSessionRequest,
) (*pb.ValidateSessionResponse, error) {
	if request.Token == "" {
		return nil, status.Error(codes.InvalidArgument, "token: must be set")
	}
	credential, ok := readToken(request.Token)
	if !ok {
		return invalid(pb.InvalidReason_INVALID_REASON_MALFORMED), nil
	}
	for {
		record, expiryMs, err := s.store.read(ctx, credential.sessionID)
		if err != nil {
			return nil, status.Error(codes.Unavailable, "the store did not answer")
		}
		if record == nil {
			return invalid(notFound), nil
		}
		found, err := decode(record)
		if err != nil || found.ID != credential.sessionID {
			return nil, status.Error(codes.DataLoss, "the record cannot be read")
		}
		nowMs := time.Now().UnixMilli()
		rotated, reason := found.judge(credential.digest, nowMs)
		if reason == noReason && request.UserId != "" && request.UserId != found.UserID {
			reason = pb.InvalidReason_INVALID_REASON_USER_MISMATCH
		}
		if reason != noReason {
			return invalid(reason), nil
		}
		expiryMs = min(expiryMs, found.AbsoluteExpireMs)
		if !request.SkipTouch && nowMs >= found.lastActiveMs(expiryMs)+found.touchIntervalMs() {
			expiryMs = found.expiryIfActiveAt(nowMs)
			same, err := s.store.touch(ctx, credential.sessionID, record, expiryMs)
			if err != nil {
				return nil, status.Error(codes.Unavailable, "the store did not answer")
			}
			if !same {
				continue
			}
		}
		return valid(found, expiryMs, nowMs, rotated), nil
	}
}

func invalid(reason pb.InvalidReason) *pb.ValidateSessionResponse {
	return &pb.ValidateSessionResponse{InvalidReason: reason}
}

func valid(found *session, expiryMs, nowMs int64, rotated bool) *pb.ValidateSessionResponse {
	lastActiveMs := found.lastActiveMs(expiryMs)
	expireTimeMs := found.AbsoluteExpireMs
	message := &pb.Session{
		SessionId:          found.ID,
		UserId:             found.UserID,
		Attributes:         found.Attributes,
		CreateTime:         timestamppb.New(time.UnixMilli(found.CreateMs)),
		LastActiveTime:     timestamppb.New(time.UnixMilli(lastActiveMs)),
		AbsoluteExpireTime: timestamppb.New(time.UnixMilli(found.AbsoluteExpireMs)),
		Etag:               found.etag(),
	}
	if found.IdleTimeoutMs > 0 {
		expireTimeMs = min(expireTimeMs, lastActiveMs+found.IdleTimeoutMs)
		message.IdleTimeout = durationpb.New(time.Duration(found.IdleTimeoutMs) * time.Millisecond)
	}
	message.ExpireTime = timestamppb.New(time.UnixMilli(expireTimeMs))
	cacheTTLMs := int64(0)
	if !rotated {
		cacheTTLMs = max(0, min(lastActiveMs+found.touchIntervalMs(), expiryMs)-nowMs)
	}
	return &pb.ValidateSessionResponse{
		Valid:        true,
		Session:      message,
		CacheTtl:     durationpb.New(time.Duration(cacheTTLMs) * time.Millisecond),
		TokenRotated: rotated,
	}
}

// emptyService is what grpc-go alone costs: it answers a message of an answer's size and looks at nothing.
type emptyService struct {
	pb.UnimplementedSessionServiceServer
	response *pb.ValidateSessionResponse
}

func (s *emptyService) ValidateSession(
	context.Context, *pb.ValidateSessionRequest,
) (*pb.ValidateSessionResponse, error) {
	return s.response, nil
}

func newService(kind, socket string) (pb.SessionServiceServer, error) {
	switch kind {
	case "empty":
		return &emptyService{response: valid(&session{
			ID:               "0000000000000000000000",
			UserID:           "user-0",
			Attributes:       map[string]string{"device": "phone", "plan": "family"},
			CreateMs:         1,
			AbsoluteExpireMs: 1,
			IdleTimeoutMs:    1,
			Version:          1,
		}, 1, 1, false)}, nil
	case "go-redis":
		return &service{store: openGoRedis(socket)}, nil
	case "rueidis":
		store, err := openRueidis(socket)
		return &service{store: store}, err
	}
	return nil, fmt.Errorf("no such kind: %q", kind)
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: peer empty|go-redis|rueidis SOCKET")
	}
	served, err := newService(os.Args[1], os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterSessionServiceServer(server, served)
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stopped
		server.Stop()
	}()
	fmt.Fprintf(os.Stderr, "listening on %s\n", listener.Addr())
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
