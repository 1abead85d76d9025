-- Marks a suspended task as ended, so that late messages find that out, and withdraws its open
-- requests.
-- KEYS[1] the suspension record
-- KEYS[2] the index of open requests
-- ARGV    retention of the record and of the requests in seconds, digest of the task ('': unknown)
-- Returns the withdrawn requests.
local now, withdrawn = now_in_ms(), {}
local suspension = redis.call('HMGET', KEYS[1], 'number', 'asked', 'digest')
local is_another = suspension[3] and ARGV[3] ~= '' and suspension[3] ~= ARGV[3]
if is_another or not suspension[1] then
  return withdrawn
end
for id in string.gmatch(suspension[2] or '', '%S+') do
  if status(id, now) == 'open' then
    redis.call('HSET', REQUEST .. id, 'open', '0')
    withdrawn[#withdrawn + 1] = id
  end
  redis.call('ZREM', KEYS[2], id)
  redis.call('EXPIRE', REQUEST .. id, ARGV[2])
end
redis.call('HDEL', KEYS[1], 'message', 'asked')
redis.call('HSET', KEYS[1], 'ended', '1', 'waits', '', 'holder', '', 'until', '0')
redis.call('EXPIRE', KEYS[1], ARGV[1])
return withdrawn
