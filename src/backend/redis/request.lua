-- Stores an approval request that no task waits for. An existing request stays unchanged.
-- KEYS[1] the request
-- KEYS[2] the index of open requests
-- KEYS[3] the outbox
-- ARGV    id, digest, document, time to decide in ms, quorum, requester, self-approval, approvers,
--         editable, nonce; how many other requests to check, retention of a finished request in seconds
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
local now = now_in_ms()
local deadline = whole(now + tonumber(ARGV[4]))
redis.call('HSET', KEYS[1], 'v', '1', 'digest', ARGV[2], 'document', ARGV[3],
  'deadline', deadline, 'quorum', ARGV[5], 'requester', ARGV[6], 'self', ARGV[7],
  'approvers', ARGV[8], 'editable', ARGV[9], 'nonce', ARGV[10], 'open', '1', 'task', '', 'at', whole(now))
redis.call('ZADD', KEYS[2], deadline, ARGV[1])
redis.call('PUBLISH', NEW_REQUEST_CHANNEL, ARGV[1])

-- Deciders may not write these keys, so new requests remove the finished ones from the index.
tidy(KEYS[2], KEYS[3], now, ARGV[11], ARGV[12])
return 1
