// A session's life as a Go service lives it, with nothing but the published descriptors:
//
//	interop TARGET DESCRIPTORS
//
// It prints one JSON object a step, and ends with status 1 at the first call that fails unexpectedly.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

type object = map[string]any

type client struct {
	connection *grpc.ClientConn
	service    protoreflect.ServiceDescriptor
}

func main() {
	service := describe(os.Args[2])
	connection, err := grpc.Dial(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	defer connection.Close()
	c := client{connection, service}
	watch := c.watch()

	login := c.call("CreateSession", object{"userId": "ana", "ttl": "3600s", "attributes": object{"device": "phone"}})
	token := login["token"]
	session := login["session"].(object)
	c.call("ValidateSession", object{"token": token})
	c.call("ValidateSession", object{"token": token, "userId": "bia", "skipTouch": true})
	c.call("BatchValidateSessions", object{"requests": []any{object{"token": token}, object{"token": "ctr_x"}}})
	c.call("GetSession", object{"sessionId": session["sessionId"]})
	c.call("ListSessions", object{"userId": "ana"})
	c.call("UpdateSession", object{
		"session":    object{"sessionId": session["sessionId"], "attributes": object{"device": "laptop"}},
		"updateMask": "attributes",
	})
	renewed := c.call("RotateSession", object{"token": token})
	c.call("ValidateSession", object{"token": renewed["token"]})
	c.call("RevokeSession", object{"token": renewed["token"]})
	c.call("ValidateSession", object{"token": renewed["token"]})
	c.call("RevokeUserSessions", object{"userId": "ana"})
	c.call("GetSession", object{"sessionId": session["sessionId"]})
	c.call("CreateSession", object{})
	c.pingUntilPong(watch)
}

// describe reads the service from the descriptors that the Python package carries.
func describe(path string) protoreflect.ServiceDescriptor {
	data, err := os.ReadFile(path)
	check(err)
	set := &descriptorpb.FileDescriptorSet{}
	check(proto.Unmarshal(data, set))
	// What they import comes with protobuf.
	for _, known := range []protoreflect.FileDescriptor{
		durationpb.File_google_protobuf_duration_proto,
		fieldmaskpb.File_google_protobuf_field_mask_proto,
		timestamppb.File_google_protobuf_timestamp_proto,
	} {
		set.File = append(set.File, protodesc.ToFileDescriptorProto(known))
	}
	files, err := protodesc.NewFiles(set)
	check(err)
	found, err := files.FindDescriptorByName("catraca.v1.SessionService")
	check(err)
	return found.(protoreflect.ServiceDescriptor)
}

// call makes a unary call and prints what came of it.
func (c client) call(name string, request object) object {
	method := c.method(name)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	response := dynamicpb.NewMessage(method.Output())
	err := c.connection.Invoke(ctx, c.path(name), message(method.Input(), request), response)
	result := object{"rpc": name}
	if err != nil {
		result["code"] = status.Code(err).String()
		for _, detail := range status.Convert(err).Details() {
			switch detail := detail.(type) {
			case *errdetails.ErrorInfo:
				result["reason"] = detail.Reason
			case *errdetails.BadRequest:
				result["field"] = detail.FieldViolations[0].Field
			}
		}
		show(result)
		return result
	}
	answer := content(response)
	result["code"], result["response"] = "OK", answer
	show(result)
	return answer
}

// watch opens a stream of events and waits until it is open.
func (c client) watch() grpc.ClientStream {
	stream, err := c.connection.NewStream(
		context.Background(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, c.path("WatchSessions"),
	)
	check(err)
	check(stream.SendMsg(message(c.method("WatchSessions").Input(), object{"start": object{}})))
	c.receive(stream)
	return stream
}

// pingUntilPong prints every event that came before the pong.
func (c client) pingUntilPong(stream grpc.ClientStream) {
	check(stream.SendMsg(message(c.method("WatchSessions").Input(), object{"ping": object{"nonce": "7"}})))
	for {
		if _, isPong := c.receive(stream)["pong"]; isPong {
			return
		}
	}
}

func (c client) receive(stream grpc.ClientStream) object {
	response := dynamicpb.NewMessage(c.method("WatchSessions").Output())
	check(stream.RecvMsg(response))
	received := content(response)
	show(object{"rpc": "WatchSessions", "code": "OK", "response": received})
	return received
}

func (c client) method(name string) protoreflect.MethodDescriptor {
	return c.service.Methods().ByName(protoreflect.Name(name))
}

func (c client) path(name string) string {
	return fmt.Sprintf("/%s/%s", c.service.FullName(), name)
}

func message(kind protoreflect.MessageDescriptor, fields object) proto.Message {
	text, err := json.Marshal(fields)
	check(err)
	made := dynamicpb.NewMessage(kind)
	check(protojson.Unmarshal(text, made))
	return made
}

func content(response proto.Message) object {
	text, err := protojson.Marshal(response)
	check(err)
	var fields object
	check(json.Unmarshal(text, &fields))
	return fields
}

func show(step object) {
	text, err := json.Marshal(step)
	check(err)
	fmt.Println(string(text))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
