-- Asks a question that no task waits for. One that is asked already stays as it is.
-- KEYS[1] the question
-- KEYS[2] the index of open questions
-- ARGV    id, digest, document, time to decide in ms, quorum, requester, self-approval, approvers,
--         editable; how many others are looked at, how long one that is over is kept in seconds
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
local now = now_in_ms()
local deadline = whole(now + tonumber(ARGV[4]))
redis.call('HSET', KEYS[1], 'v', '1', 'digest', ARGV[2], 'document', ARGV[3],
  'deadline', deadline, 'quorum', ARGV[5], 'requester', ARGV[6], 'self', ARGV[7],
  'approvers', ARGV[8], 'editable', ARGV[9], 'open', '1', 'task', '', 'at', whole(now))
redis.call('ZADD', KEYS[2], deadline, ARGV[1])
redis.call('PUBLISH', ASKED, ARGV[1])

-- Whoever decides may not write here, so those that are over go when others come.
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', whole(now), 'LIMIT', '0', ARGV[10])
local function tidy(id)
  local state, at = standing(id, now)
  if state ~= 'open' and (redis.call('HGET', ASK .. id, 'task') or '') == '' then
    redis.call('ZREM', KEYS[2], id)
    redis.call('EXPIRE', ASK .. id, whole(math.ceil((at - now) / 1000) + tonumber(ARGV[11])))
  end
end
for _, id in ipairs(due) do
  -- A record that is no such hash stays, and hinders nobody.
  pcall(tidy, id)
end
return 1
