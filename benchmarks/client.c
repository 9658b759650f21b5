/* What the broker itself can do: a client in C that does nothing but its work.
 *
 *   client publish HOST PORT EXCHANGE ROUTING_KEY COUNT BODY_BYTES WINDOW
 *   client consume HOST PORT QUEUE COUNT PREFETCH ACK_EVERY
 *
 * publish: persistent, mandatory messages, each confirmed, at most WINDOW of them without an answer.
 * consume: one acknowledgement for ACK_EVERY deliveries. Both print messages per second; anything
 * unexpected (a nack, a return, 30 seconds of silence) ends them with an error.
 */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct timeval patience = {30, 0};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void check(int fine, const char *what) {
    if (!fine) {
        fprintf(stderr, "client: %s failed\n", what);
        exit(1);
    }
}

static void check_reply(amqp_connection_state_t connection, const char *what) {
    check(amqp_get_rpc_reply(connection).reply_type == AMQP_RESPONSE_NORMAL, what);
}

static amqp_connection_state_t open_connection(const char *host, int port) {
    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    check(amqp_socket_open(socket, host, port) == 0, "connecting");
    amqp_rpc_reply_t reply =
        amqp_login(connection, "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest");
    check(reply.reply_type == AMQP_RESPONSE_NORMAL, "login");
    amqp_channel_open(connection, 1);
    check_reply(connection, "opening a channel");
    return connection;
}

/* Wait for a confirm, and take it off the numbers in `open`; return of how many messages it tells. */
static uint64_t confirmed(amqp_connection_state_t connection, unsigned char *open, uint64_t *lowest) {
    amqp_frame_t frame;
    amqp_maybe_release_buffers(connection);
    check(amqp_simple_wait_frame_noblock(connection, &frame, &patience) == AMQP_STATUS_OK, "waiting");
    check(frame.frame_type == AMQP_FRAME_METHOD && frame.payload.method.id == AMQP_BASIC_ACK_METHOD,
          "publishing");
    amqp_basic_ack_t *ack = frame.payload.method.decoded;
    uint64_t told = 0, tag = ack->multiple ? *lowest : ack->delivery_tag;
    for (; tag <= ack->delivery_tag; tag++) {
        told += open[tag];
        open[tag] = 0;
    }
    if (ack->multiple) *lowest = tag;
    return told;
}

static void publish(amqp_connection_state_t connection, char **arguments) {
    uint64_t count = strtoull(arguments[2], NULL, 10), window = strtoull(arguments[4], NULL, 10);
    amqp_bytes_t body = amqp_bytes_malloc(strtoull(arguments[3], NULL, 10));
    memset(body.bytes, 'x', body.len);
    amqp_confirm_select(connection, 1);
    check_reply(connection, "confirm mode");
    amqp_basic_properties_t properties = {0};
    properties._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CONTENT_TYPE_FLAG;
    properties.delivery_mode = 2;
    properties.content_type = amqp_cstring_bytes("application/json");
    unsigned char *open = calloc(count + 2, 1);
    uint64_t sent = 0, answered = 0, lowest = 1;
    double started = now();
    while (answered < count) {
        while (sent < count && sent - answered < window) {
            check(amqp_basic_publish(connection, 1, amqp_cstring_bytes(arguments[0]),
                                     amqp_cstring_bytes(arguments[1]), 1, 0, &properties,
                                     body) == AMQP_STATUS_OK,
                  "writing");
            open[++sent] = 1;
        }
        answered += confirmed(connection, open, &lowest);
    }
    printf("%.1f\n", count / (now() - started));
    free(open);
    amqp_bytes_free(body);
}

static void consume(amqp_connection_state_t connection, char **arguments) {
    uint64_t count = strtoull(arguments[1], NULL, 10), every = strtoull(arguments[3], NULL, 10);
    amqp_basic_qos(connection, 1, 0, (uint16_t)atoi(arguments[2]), 0);
    check_reply(connection, "prefetch");
    double started = now();
    amqp_basic_consume(connection, 1, amqp_cstring_bytes(arguments[0]), amqp_empty_bytes, 0, 0, 0,
                       amqp_empty_table);
    check_reply(connection, "consuming");
    for (uint64_t received = 1; received <= count; received++) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        amqp_rpc_reply_t reply = amqp_consume_message(connection, &envelope, &patience, 0);
        check(reply.reply_type == AMQP_RESPONSE_NORMAL, "receiving");
        if (received % every == 0 || received == count)
            check(amqp_basic_ack(connection, 1, envelope.delivery_tag, 1) == 0, "acknowledging");
        amqp_destroy_envelope(&envelope);
    }
    printf("%.1f\n", count / (now() - started));
}

int main(int argc, char **argv) {
    int publishes = argc == 9 && strcmp(argv[1], "publish") == 0;
    check(publishes || (argc == 8 && strcmp(argv[1], "consume") == 0), "reading the arguments");
    amqp_connection_state_t connection = open_connection(argv[2], atoi(argv[3]));
    if (publishes)
        publish(connection, argv + 4);
    else
        consume(connection, argv + 4);
    amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(connection);
    return 0;
}
