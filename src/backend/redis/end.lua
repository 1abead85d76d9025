-- Notes that a task that was parked has ended: late messages find that here. What it still asks is
-- withdrawn.
-- KEYS[1] the park record
-- KEYS[2] the index of open questions
-- ARGV    how long the note is kept and how long questions are, in seconds, digest of the task ('': not
--         known)
-- Returns the questions that were withdrawn.
local now, withdrawn = now_in_ms(), {}
local asked = redis.call('HGET', KEYS[1], 'asked')
local digest = redis.call('HGET', KEYS[1], 'digest')
local is_another = digest and ARGV[3] ~= '' and digest ~= ARGV[3]
if is_another or redis.call('EXISTS', KEYS[1]) == 0 then
  return withdrawn
end
for id in string.gmatch(asked or '', '%S+') do
  if standing(id, now) == 'open' then
    redis.call('HSET', ASK .. id, 'open', '0')
    withdrawn[#withdrawn + 1] = id
  end
  redis.call('ZREM', KEYS[2], id)
  redis.call('EXPIRE', ASK .. id, ARGV[2])
end
redis.call('HDEL', KEYS[1], 'message', 'asked')
redis.call('HSET', KEYS[1], 'ended', '1', 'waits', '', 'holder', '', 'until', '0')
redis.call('EXPIRE', KEYS[1], ARGV[1])
return withdrawn
